"""Files with random mistakes are read, or answered with one line: pictures and their EXIF, tables, column files, questions.

Longer and with other mistakes: PTMRUN_FUZZ=seed:count."""

import io
import json
import os
import random
import struct
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from texts import FRAMINGS, options, part

from ptmrun.data.images import decode, levels
from ptmrun.data.sources import imagefolder, text
from ptmrun.data.text import tokenizer_training
from ptmrun.downstream.question_answering import read as questions
from ptmrun.downstream.token_classification import read as columns
from ptmrun.errors import UserError

SEED, COUNT = map(int, os.environ.get("PTMRUN_FUZZ", "0:0").split(":"))
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
SCRAPS = [b"\0", b'"', b"'", b"\n", b"\r", b"\t", b",", b";", b" ", b"#", b"{", b"}", b"[", b"]", b"\\", b"\xff", b"\xef\xbb\xbf"]
SCRAPS += [
    b"\xff\xfe",
    b"\xc3",
    b"\xe2\x80\xa8",
    b"\x85",
    b"\x0c",
    b"\x1b[2J",
    b"-DOCSTART-",
    b"O",
    b"B-",
    b"I-X",
    b"2-3",
    b"null",
]
SCRAPS += [b"NaN", b"1e999", b"-1", b"0.0", b'"\\ud800"', b"9" * 5000, b"[" * 2000, b'""', b"sep=;\n", "é".encode(), b"e\xcc\x81"]


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few random changes: bytes, numbers, scraps, pieces that are lost or come twice, an end that is."""
    result = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        place = draw.randrange(len(result) + 1) if draw.random() < 0.6 else draw.randrange(min(len(result), 64) + 1)
        size = draw.choice([1, 2, 4, draw.randrange(1, 40)])
        match draw.randrange(7):
            case 0:
                result[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                result[place : place + 1] = bytes(b ^ (1 << draw.randrange(8)) for b in result[place : place + 1])
            case 2:
                number = struct.pack(draw.choice("<>") + "I", draw.choice(NUMBERS))
                width = draw.choice([1, 2, 4])
                result[place : place + width] = number[:width]
            case 3:
                result[place:place] = draw.choice(SCRAPS)
            case 4:
                del result[place : place + size]
            case 5:
                result[place:place] = result[place : place + size]
            case 6:
                if draw.random() < 0.3:
                    del result[place:]
    return bytes(result)


def answered(read) -> bool:
    """Whether it was read; else with one line."""
    try:
        read()
    except UserError as error:
        lines = error.args
    else:
        return True
    assert len(lines) == 1
    assert "\n" not in lines[0]
    return False


def pictures() -> list[tuple[str, bytes]]:
    """(name, file) of every kind that Pillow writes and reads, in several modes."""
    values = np.random.default_rng(0).integers(0, 256, (10, 12, 4), dtype=np.uint8)
    values[:5] = values[0, 0]  # some of it in long runs
    images = [Image.fromarray(values[:, :, :3]).convert(mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "F", "I")]
    images += [
        Image.fromarray(values),
        Image.fromarray(values[:, :, 0].astype(np.uint16) * 200),
        Image.fromarray(values).convert("LA"),
    ]
    kinds = [k for k in Image.SAVE if k in Image.OPEN and k not in imagefolder.NOT_READ]
    result = []
    for kind in sorted(kinds):
        ending = next((e for e, k in Image.registered_extensions().items() if k == kind), ".png")
        for image in images:
            for more in ({}, {"compression": "tiff_lzw"}, {"progressive": True}, {"save_all": True, "append_images": [image]}):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, kind, **more)
                except (OSError, ValueError, KeyError, SystemError):
                    continue
                if all(buffer.getvalue() != data for _, data in result):
                    result.append((f"{image.mode.replace(';', '_')}{ending}", buffer.getvalue()))
    return result


def exif(draw: random.Random) -> bytes:
    """A directory of random entries, an orientation of any type among them."""
    order = draw.choice("<>")
    tags = [
        0x112,
        *draw.sample([0x100, 0x101, 0x10E, 0x11A, 0x11B, 0x8769, 0x8825, 0xA005, 0x927C, 0x9286, 0xEA1C, 0x14A, 0x201], 4),
    ]
    tags += [draw.randrange(65536)]
    entries = b""
    for tag in sorted(tags):
        kind, count = draw.randrange(14), draw.choice([0, 1, 1, 1, 2, 5, 0xFFFFFFFF])
        value = draw.choice([*range(10), *NUMBERS]) if draw.random() < 0.7 else draw.randrange(8, 200)
        cell = struct.pack(f"{order}HH", value & 0xFFFF, 0) if draw.random() < 0.5 else struct.pack(f"{order}I", value)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + cell
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    data = (
        b"Exif\0\0" + head + entries + struct.pack(f"{order}I", draw.choice([0, 0, 0, 8, 99, 0xFFFFFFFF])) + draw.randbytes(200)
    )
    return mutated(data, draw) if draw.random() < 0.3 else data


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """The way of a run from a file to pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**19)

    def decode_file(name: str, data: bytes) -> bool:
        (tmp_path / name).write_bytes(data)
        decoder = decode.Decoder(imagefolder.Files(tmp_path, [name]), 8, 3, levels.Ranges())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about files; those of the code are errors elsewhere
            pixels, good = decoder[0]
        assert pixels.shape == (3, 8, 8)
        assert pixels.dtype == torch.uint8
        assert answered(lambda: decode.survey(decoder.source)) or not good
        return good

    return decode_file


def test_pictures(decoded):
    files, good = pictures(), 0
    endings = sorted({name.split(".")[-1] for name, _ in files})
    assert {"avif", "bmp", "gif", "jpg", "png", "tif", "webp"} & set(endings) >= {"bmp", "gif", "png", "webp"}
    assert all(decoded(name, data) for name, data in files)
    count = COUNT or 3 * len(files)
    for number in range(count):
        draw = random.Random(f"pictures {SEED} {number}")
        name, data = files[number % len(files)]
        if draw.random() < 0.1:
            name = f"x.{draw.choice(endings)}"
        good += decoded(name, mutated(data, draw))
    assert 0.1 * count < good < 0.95 * count


def test_exif(decoded):
    image, good = Image.new("RGB", (12, 10), "red"), 0
    count = COUNT or 200
    for number in range(count):
        draw = random.Random(f"exif {SEED} {number}")
        kind, buffer = draw.choice(["jpeg", "png", "webp"]), io.BytesIO()
        try:
            image.save(buffer, kind, exif=exif(draw))
        except Exception:  # not every mistake can be written
            continue
        good += decoded(f"x.{kind}", buffer.getvalue())
    assert good > 0.5 * count


def tables() -> dict[str, bytes]:
    rows = [(f"a text, of {i} words", "ab"[i % 2], f"second {i}", i % 3, i / 2) for i in range(12)]
    names = ["text", "label", "pair", "group", "score"]
    lines = [names, *([str(v) for v in row] for row in rows)]
    parquet = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), parquet)
    return {
        "csv": "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines).encode(),
        "tsv": "\n".join("\t".join(line) for line in lines).encode(),
        "jsonl": "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows).encode(),
        "json": json.dumps([dict(zip(names, row, strict=True)) for row in rows]).encode(),
        "parquet": parquet.getvalue().to_pybytes(),
        "txt": "\n".join(", ".join(line) for line in lines).encode("utf-16"),
    }


def test_tables(tmp_path):
    default, files, outcomes = options("dataset=text"), tables(), []
    choices = {
        "text_column": ["auto", "text", "pair", "score", 1],
        "pair_column": [None, None, "pair", "group"],
        "label_column": ["auto", "label", "group", "score", None],
        "label_separator": [None, None, ";", " "],
        "group": [None, None, "group", "pair"],
        "documents": ["auto", "auto", "auto", "rows", "lines", "file", "blank_lines"],
        "encoding": ["utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "utf-7", "cp1252", "idna", "punycode", "big5"],
        "errors": ["strict", "replace"],
    }
    for number in range(COUNT or 400):
        draw = random.Random(f"tables {SEED} {number}")
        ending = draw.choice(list(files))
        file = tmp_path / f"x.{ending}"
        file.write_bytes(mutated(files[ending], draw))
        changes = {key: draw.choice(some) for key, some in choices.items() if draw.random() < 0.3}
        chosen = default.model_copy(update={"root": str(file), **changes})

        labelled = draw.random() < 0.3

        def read(chosen=chosen, labelled=labelled):
            part = text.read(chosen, labelled).parts["train"]
            assert len(list(part.documents())) == part.count > 0
            assert all(x is None or len(x) == part.count for x in (part.labels, part.seconds, part.groups))

        outcomes.append(answered(read))
    assert 0.1 < np.mean(outcomes) < 0.9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PTMRUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tokenizer_training.train(
            "wordpiece", 200, FRAMINGS["wordpiece"], part(["Ann met EU . rejects a German call"] * 20)
        )


def test_column_files(tmp_path, tokenizer):
    words = [
        "-DOCSTART- -X- O",
        "",
        *["EU NNP B-ORG", "rejects VBZ O", "German JJ B-MISC", "Peter NNP B-PER", "B NNP I-PER", ""] * 3,
    ]
    given = {"token_column": 0, "tag_column": "last", "scheme": "auto", "repair": False, "encoding": "utf-8", "errors": "strict"}
    outcomes = []
    for number in range(COUNT or 400):
        draw = random.Random(f"columns {SEED} {number}")
        data = draw.choice(" \t").join("\n".join(words).split(" ")).encode()
        file = tmp_path / f"train.{draw.choice(columns.SUFFIXES[:2])}"
        file.write_bytes(mutated(data, draw))
        more = {
            "scheme": ["auto", "plain", "bio"],
            "repair": [False, True],
            "errors": ["strict", "replace"],
            "tag_column": [1, "last"],
        }
        chosen = SimpleNamespace(root=str(file), **given | {k: draw.choice(v) for k, v in more.items()})

        def read(chosen=chosen):
            splits, _, _ = columns.read_splits(chosen, tokenizer, 16, [])
            assert len(splits["train"]) > 0

        outcomes.append(answered(read))
    assert 0.1 < np.mean(outcomes) < 0.9


def test_questions(tmp_path, tokenizer):
    asked = [
        {"id": str(i), "question": f"who met {i}?", "answers": [{"text": "EU", "answer_start": 8}], "is_impossible": False}
        for i in range(3)
    ]
    asked.append({"id": "x", "question": "why?", "answers": [], "is_impossible": True})
    data = json.dumps(
        {"version": "2", "data": [{"title": "a", "paragraphs": [{"context": "Ann met EU .", "qas": asked}]}]}
    ).encode()
    file, outcomes = tmp_path / "train.json", []
    keys = {"encoding": "utf-8", "errors": "strict", "stride": 4, "answer_length": 5, "max_mismatched": 0.5, "scoring": "auto"}
    for number in range(COUNT or 150):
        file.write_bytes(mutated(data, random.Random(f"questions {SEED} {number}")))

        def read():
            splits, _, _ = questions.read_splits(SimpleNamespace(root=str(file), **keys), tokenizer, 16, [])
            assert len(splits["train"]) > 0

        outcomes.append(answered(read))
    assert 0.03 < np.mean(outcomes) < 0.9
