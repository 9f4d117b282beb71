"""Tar shards: what is read of them equals what is read of the same files in folders."""

import io
import itertools
import json
import tarfile

import pytest
import torch
from conftest import draw
from pairs import loaded
from test_data import load, own

from ptmrun.data.sources import imagefolder, shards
from ptmrun.errors import UserError

COUNT = 12


def shard(path, files, **options):
    """A tar file of {name: bytes or text}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, **{"mode": "w", **options}) as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample(place, i, **more):
    """A picture and its other files, {name: content}."""
    return {f"a/{i:03d}.png": draw(place / f"{i}.png", shade=i).read_bytes(), **{f"a/{i:03d}.{k}": v for k, v in more.items()}}


def settings(root, *more):
    return ["dataset=shards", f"dataset.root={root}", *more]


def test_images_and_classes_are_those_of_a_folder(tmp_path):
    root = tmp_path / "shards"
    for n in range(3):
        files = {}
        for i in range(4 * n, 4 * n + 4):
            files |= sample(tmp_path / "photos" / ("cat", "dog")[i % 2], i, cls=("cat", "dog")[i % 2])
        shard(root / f"train-{n:03d}.tar", files)
    tarred = load(shards, *settings(root))
    folder = load(imagefolder, *own(tmp_path / "photos"))
    assert (tarred.classes, tarred.size, tarred.channels) == (folder.classes, folder.size, folder.channels)

    def of(data):
        splits = [data.train, data.val, data.test]
        images = torch.cat([torch.cat(list(x.all())) for x in splits])
        labels = torch.cat([x.labels for x in splits])
        return sorted((int(label), image.double().sum().item()) for image, label in zip(images, labels, strict=True))

    assert of(tarred) == of(folder)


def test_shards_are_shuffled_and_then_the_images_of_a_few(tmp_path):
    for n in range(4):
        files = {}
        for i in range(6 * n, 6 * n + 6):
            files |= sample(tmp_path / "photos", i, txt=f"picture {i}")
        shard(tmp_path / "shards" / f"train-{n}.tar", files)
    root = tmp_path / "shards"
    pairs = loaded("dataset=caption_shards", f"dataset.root={root}", "dataset.window=1")
    for data in (load(shards, *settings(root, "dataset.window=1")), pairs):
        shard_of = [name.split(":")[0] for name in data.train.sample_names]
        drawn = data.train.block_shuffle.ordered(0, "test", 0, 0, len(data.train)).tolist()
        assert sorted(drawn) == list(range(len(data.train)))
        changes = sum(shard_of[a] != shard_of[b] for a, b in itertools.pairwise(drawn))
        assert changes == len(set(shard_of)) - 1
        assert data.train.subset(torch.arange(3)).block_shuffle.ordered(0, "test", 0, 0, 3).sort().values.tolist() == [0, 1, 2]
    assert load(shards, *settings(root)).train.block_shuffle is None


def test_splits_are_named_by_shards_or_by_their_folders(tmp_path):
    for place in ("train-0.tar", "validation_0.tar", "test/0.tar"):
        files = {}
        for i in range(4):
            files |= sample(tmp_path / "photos", i + len(place), json=json.dumps({"label": f"k{i % 2}", "camera": "x"}))
        shard(tmp_path / "shards" / place, files)
    data = load(shards, *settings(tmp_path / "shards", "dataset.group=camera"))
    assert [len(x) for x in (data.train, data.val, data.test)] == [4, 4, 4]
    assert data.classes == ["k0", "k1"]
    assert "labels are the key label of the .json files" in "\n".join(data.notes)


def test_a_sample_ends_where_the_name_changes_and_other_files_are_counted(tmp_path):
    files = {}
    for i in range(COUNT):
        files |= sample(tmp_path / "photos", i, cls=str(i % 2), **{"depth.npy": b"x"})
    files |= {"a/other.mask.png": b"no picture", "a/.hidden.png": b"x", "a/other.cls": "1"}
    shard(tmp_path / "one.tar", files)
    data = load(shards, *settings(tmp_path / "one.tar"))
    assert sum(map(len, (data.train, data.val, data.test))) == COUNT
    notes = "\n".join(data.notes)
    assert "12 .depth.npy, 1 .mask.png" in notes
    assert "1 samples of the train split have no image" in notes


def write_nothing(place):
    (place / "shards").mkdir()


def write_compressed(place):
    shard(place / "shards" / "train.tar.gz", sample(place / "photos", 0), mode="w:gz")


def write_gzip_as_tar(place):
    shard(place / "shards" / "train.tar", sample(place / "photos", 0), mode="w:gz")


def write_cut_short(place):
    path = shard(place / "shards" / "train.tar", sample(place / "photos", 0, txt="x" * 30_000))
    path.write_bytes(path.read_bytes()[:9000])


def write_texts_only(place):
    shard(place / "shards" / "train.tar", {"a.txt": "a text"})


def write_test_only(place):
    shard(place / "shards" / "test-0.tar", sample(place / "photos", 0))


def write_two_images(place):
    shard(place / "shards" / "train.tar", {**sample(place / "photos", 0), "a/000.jpg": b"x"})


def write_broken_facts(place):
    shard(place / "shards" / "train.tar", sample(place / "photos", 0, json="[1]"))


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (write_nothing, "holds no .tar files"),
        (write_compressed, "train.tar.gz is compressed, which has no random access: unpack it to a .tar"),
        (write_gzip_as_tar, "not a whole, uncompressed .tar file"),
        (write_cut_short, "not a whole, uncompressed .tar file"),
        (write_texts_only, "no images"),
        (write_test_only, "there is test, but no train-\\*.tar"),
        (write_two_images, "train.tar:a/000: two images"),
        (write_broken_facts, "train.tar:a/000.json: expected an object"),
    ],
)
def test_what_is_no_shard_is_named(tmp_path, write, why):
    write(tmp_path)
    with pytest.raises(UserError, match=why):
        load(shards, *settings(tmp_path / "shards"))


@pytest.mark.parametrize("kind", ["txt", "json", "key"])
def test_captions_are_read_from_shards(tmp_path, kind):
    files = {}
    for i in range(COUNT):
        texts = [f"bar number {i}", f"a stripe at {i}"]
        facts = json.dumps({"alt" if kind == "key" else "Caption": texts})
        more = {"txt": "\n".join(texts) + "\n\n"} if kind == "txt" else {"json": facts}
        files |= sample(tmp_path / "photos", i, **more)
    files |= sample(tmp_path / "photos", 99)
    shard(tmp_path / "shards" / "train-0.tar", files)
    more = ["dataset.caption_column=alt"] if kind == "key" else []
    data = loaded("dataset=caption_shards", f"dataset.root={tmp_path / 'shards'}", *more)
    every = {text: own for split in (data.train, data.val, data.test) for own in split.captions() for text in own}
    assert len(every) == 2 * COUNT
    assert every["bar number 3"] == ["bar number 3", "a stripe at 3"]
    assert "1 of 13 images of the train split have no caption and are left out" in "\n".join(data.notes)


def test_a_caption_that_is_no_text_is_named(tmp_path):
    shard(tmp_path / "shards" / "train-0.tar", sample(tmp_path / "photos", 0, json=json.dumps({"caption": [1]})))
    with pytest.raises(UserError, match=r"train-0\.tar:a/000: expected a caption, found 1"):
        loaded("dataset=caption_shards", f"dataset.root={tmp_path / 'shards'}")
