"""Gray pictures of more than 8 bits: one scale for a data set."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ptmrun.compose import compose
from ptmrun.data import images as kind
from ptmrun.data.images import decode, levels, load
from ptmrun.data.sources import imagefolder


def tiff(array: np.ndarray) -> bytes:
    """A gray TIFF of any type of numbers."""
    (height, width), data, size = array.shape, array.tobytes(), array.itemsize * 8
    how = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags = [(256, width), (257, height), (258, size), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (339, how)])
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 10) + entries + bytes(4)


def ramp(low: float, high: float, dtype: str) -> np.ndarray:
    return np.linspace(low, high, 64 * 64).reshape(64, 64).astype(dtype)


def folder(root, *arrays):
    """Two classes, each with every array ten times, a place in its lower half darker, so that no two are alike."""
    for c in ("a", "b"):
        (root / c).mkdir(parents=True)
        for i in range(10):
            for j, array in enumerate(arrays):
                values = array.copy()
                values[40, i + 10 * "ab".index(c)] = values.min()
                (root / c / f"{i}-{j}.tif").write_bytes(tiff(values))
    return root


def read(root, *more):
    options = compose(["dataset=imagefolder", f"dataset.root={root}", "dataset.image_size=64", *more]).dataset
    return load.load(imagefolder.read, options, 0, lambda *_: None)


RAMPS = {
    "16 bits": (ramp(0, 65535, "<u2"), "0 is black and 65535 is white"),
    "12 in 16": (ramp(0, 4000, "<u2"), "0 is black and 4095 is white"),
    "8 in 16": (ramp(0, 255, "<u2"), "0 is black and 255 is white"),
    "with a sign": (ramp(-1024, 3071, "<i2"), "-1024 is black and 3071 is white"),
    "int32": (ramp(0, 1_000_000, "<i4"), "0 is black and 1e+06 is white"),
    "uint32": (ramp(0, 4_000_000_000, "<u4"), "0 is black and 4e+09 is white"),
    "float 0 to 1": (ramp(0, 1, "<f4"), "0 is black and 1 is white"),
    "float -1 to 1": (ramp(-1, 1, "<f4"), "-1 is black and 1 is white"),
    "float 0 to 255": (ramp(0, 255, "<f4"), "0 is black and 255 is white"),
    "float, little": (ramp(0, 0.01, "<f4"), "0 is black and 0.01 is white"),
}


@pytest.mark.parametrize("name", RAMPS)
def test_the_range_of_a_data_set_is_black_to_white(tmp_path, name):
    array, said = RAMPS[name]
    data = read(folder(tmp_path / "x", array))
    assert said in " ".join(data.notes)
    pixels = next(data.train.all())[0, 0].float()
    assert pixels.min() == 0
    assert pixels.max() >= (4000 / 4095 * 255 // 1 if name == "12 in 16" else 254)
    assert pixels[:40].flatten().diff().min() >= 0


def test_a_dark_picture_stays_darker_than_a_bright_one(tmp_path):
    root = folder(tmp_path / "x", ramp(0, 250, "<u2"), ramp(0, 60_000, "<u2"))
    data = read(root)
    brightest = torch.cat(list(data.train.all())).flatten(1).max(1).values
    assert sorted(brightest.unique().tolist()) == [0, 233]  # 250 and 60,000 of 65,535
    streamed = read(root, "dataset.cache_gb=0")
    assert torch.equal(next(streamed.train.all()), next(data.train.all()))


def test_brighter_test_pictures_are_surveyed_too(tmp_path):
    folder(tmp_path / "x" / "train", ramp(0, 4000, "<u2"))
    folder(tmp_path / "x" / "test", ramp(0, 60_000, "<u2"))
    data = read(tmp_path / "x")
    assert data.scales == {"whole": (0, 65535)}
    assert next(data.test.all()).max() == 233


def test_the_scale_is_part_of_the_data_and_goes_with_the_model(tmp_path):
    root = folder(tmp_path / "x", ramp(0, 4000, "<u2"))
    before, cached = read(root), set((tmp_path / "cache").glob("*.pixels.npy"))
    (root / "a" / "0-0.tif").write_bytes(tiff(ramp(0, 60_000, "<u2")))
    after = read(root)
    assert before.fingerprint != after.fingerprint
    assert len(set((tmp_path / "cache").glob("*.pixels.npy")) - cached) == 1
    facts = {**before.facts, "levels": {"whole": [0, 4095]}}
    cfg = compose(["dataset=imagefolder", "dataset.root=x", "dataset.image_size=64"])
    processor = kind.processor(cfg, facts, None, None, torch.device("cpu"))
    dark = Image.fromarray(np.full((64, 64), 2048, dtype=np.uint16))
    assert processor.read([dark]).unique().tolist() == [127]
    assert kind.processor(cfg, {"mean": [0.5], "std": [0.5]}, None, None, torch.device("cpu")).scales is None


def test_the_cache_follows_the_scale():
    files = [decode.cache_file(decode.Decoder([], 8, 1, scales), "f", "pixels") for scales in ({}, {"whole": (0, 255)})]
    assert files[0] != files[1]


def test_8_bits_have_no_scale(tmp_path):
    for c in ("a", "b"):
        (tmp_path / "x" / c).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(np.full((64, 64), 10 * i + ord(c), dtype=np.uint8)).save(tmp_path / "x" / c / f"{i}.png")
    data = read(tmp_path / "x")
    assert (data.scales, set(data.facts)) == ({}, {"mean", "std"})
    assert not any("white" in note for note in data.notes)


def test_odd_values():
    broken = Image.fromarray(np.array([[np.nan, 0.25], [np.inf, 0.5]], dtype=np.float32))
    assert levels.surveyed(broken) == {"decimal": (0, 0.5)}
    assert decode.tensor(broken, 2, 1, {"decimal": (0, 1)}).flatten().tolist()[1:4:2] == [63, 127]
    eight = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    assert decode.tensor(Image.fromarray(eight), 16, 1).flatten().tolist() == list(range(256))
    assert levels.chosen({"decimal": (7.0, 7.0)}) == {"decimal": (7, 8)}
    assert levels.chosen({"whole": (-3.0, -3.0)}) == {"whole": (-3, -2)}
    dark = Image.fromarray(np.full((2, 2), 300, dtype=np.uint16))
    assert decode.tensor(dark, 2, 1, {}).unique().tolist() == [1]  # of a kind that the survey has not seen


def test_dark_colours_of_16_bits_are_warned_of(tmp_path):
    """Pillow reads the upper 8 bits of them."""

    def png(value: int) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        row = b"\0" + struct.pack(">3H", value, value, value) * 2
        head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")

    for value, warned in ((4095, True), (65535, False)):
        (tmp_path / "x.png").write_bytes(png(value))
        ranges = decode.survey(imagefolder.Files(tmp_path, ["x.png"]))[2]
        assert levels.chosen(ranges) == {}
        assert [line.startswith("Warning: of colours of 16 bits") for line in levels.notes({}, ranges)] == [True] * warned
