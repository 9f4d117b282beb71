"""Texts whose words or passages are annotated: the files of each split, and where a text's tokens stand in it and in a frame."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptmrun.data.sources.folders import absent, place_of
from ptmrun.data.sources.text import as_downstream, by_split
from ptmrun.data.sources.textfile import decoded
from ptmrun.data.text.tokenizer import slices
from ptmrun.errors import UserError, printable


def files(root: str, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files of each split, sorted: those called train, val and test, or in folders called so; one that is not, alone, is
    train.

    Raises UserError where there is nothing to train on.
    """
    place = place_of(root)
    if place.is_file():
        return {"train": [place]}
    if not place.is_dir():
        raise UserError(f"downstream.root={root}: {absent(place, 'file or folder')}")
    there = sorted(p for p in place.rglob("*") if p.suffix.lower() in suffixes and p.is_file() and not p.name.startswith("."))
    splits = by_split(place, there) or ({"train": there} if len(there) == 1 else {})
    if not splits:
        listing = f"; there is {', '.join(printable(p.name) for p in there[:5])}" if there else ""
        raise UserError(f"downstream.root={root}: expected a file train{suffixes[0]} (or {' '.join(suffixes[1:])}){listing}")
    return {name: splits[name] for name in ("train", "val", "test") if name in splits}


def read(path: Path, options: Any) -> str:
    """The text of a file, with \\n at the end of its lines. Raises UserError for what is no text in downstream.encoding."""
    with as_downstream():
        return "".join(decoded(path, options.encoding, options.errors))


class Encoded(NamedTuple):
    """A text as tokens without special ones."""

    ids: np.ndarray  # [n] int32
    spans: np.ndarray  # [n, 2] int32: its first character, and the one after the last; without spaces around it, so maybe none


def encoded(tokenizer: Any, texts: list[str]) -> list[Encoded]:
    """Tokens of each text, and the characters that they stand for."""
    encodings = []
    for some in slices(texts):
        for text, e in zip(some, tokenizer.plain.encode_batch(some, add_special_tokens=False), strict=True):
            spans = np.array([trimmed(text, *span) for span in e.offsets], dtype=np.int32).reshape(-1, 2)
            encodings.append(Encoded(np.array(e.ids, dtype=np.int32), spans))
    return encodings


def trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span of a text without the spaces around it."""
    piece = text[start:stop]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, start + len(piece.strip()))


class Frame(NamedTuple):
    """What a model reads: one text, or a second one after the first, with special tokens."""

    ids: np.ndarray  # [T] int32
    types: np.ndarray  # [T] uint8
    places: np.ndarray  # [n]: where each token of the last text stands, -1 beyond the length


def framed(tokenizer: Any, first: np.ndarray, second: np.ndarray | None, length: int) -> Frame:
    """Tokens of a text, or of two, as the model family frames them in at most `length` tokens."""
    last = first if second is None else second
    marks = -1 - np.arange(len(last))  # the framing is asked where it puts them
    ids, types = tokenizer.frame(marks, None, length) if second is None else tokenizer.frame(first, marks, length)
    inside = np.nonzero(ids < 0)[0]
    places = np.full(len(last), -1)
    places[: len(inside)] = inside
    ids[inside] = last[: len(inside)]
    return Frame(ids.astype(np.int32), types.astype(np.uint8), places)
