"""Your own texts: .txt files, or tables (.csv, .tsv, .jsonl, .json, .parquet) with a text a row, labelled or not."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ptmrun.data.sources import TextSource
from ptmrun.data.sources.folders import SPLITS, absent, files_below, nfc, place_of, readable, unpack, without_json
from ptmrun.data.sources.rows import Row, gathered
from ptmrun.data.sources.tables import TABLES, Columns, all_rows
from ptmrun.data.sources.textfile import lines, units
from ptmrun.errors import UserError, printable

SUFFIXES = (".txt", *TABLES)


def read(options: Any, labelled: bool = False) -> TextSource:
    """Reads everything once, to find what is wrong with it, to count it and to take its fingerprint. With `labelled`, texts
    without labels are wrong."""
    if not options.root:
        raise UserError("dataset.root: a file or folder of texts is needed, as in dataset.root=texts")
    files = files_by_split(options.root)
    tables = {path.suffix.lower() != ".txt" for paths in files.values() for path in paths}
    if len(tables) > 1:
        raise UserError(f"dataset.root={options.root}: holds both .txt files and tables; point it at one of the two")
    if tables == {True}:
        if options.documents not in ("auto", "rows"):
            raise UserError(f"dataset.documents={options.documents}: each row of a table is a document; expected auto or rows")
        notes: list[str] = []
        columns = Columns.choose(files, options, labelled, notes)
        makers: dict[str, Callable[[], Iterator[Row]]] = {
            name: partial(all_rows, paths, columns, options.encoding, options.errors) for name, paths in files.items()
        }
        source = gathered(makers, options.root, options.label_separator, options.errors, notes, labelled=labelled)
        return replace(source, column=columns.text)
    for key in ("pair_column", "label_column", "group"):
        if getattr(options, key) not in (None, "auto"):
            raise UserError(
                f"dataset.{key}={getattr(options, key)}: .txt files have no columns; expected a table ({' '.join(TABLES)})"
            )
    kind, notes = options.documents, list[str]()
    if kind == "rows":
        raise UserError("dataset.documents=rows: .txt files have no rows; expected auto, file, blank_lines or lines")
    if kind == "auto":
        kind = units(files["train"], options.encoding, options.errors)
        said = {"file": "each file", "blank_lines": "what stands between empty lines", "lines": "each line"}[kind]
        notes.append(f"{said} is a document (dataset.documents={kind})")
    classes = {} if options.label_column is None else folders(place_of(options.root), files)
    if classes:
        notes.append("the folder of each file is its label (dataset.label_column=null: no labels)")
    makers = {name: partial(all_texts, paths, kind, options.encoding, options.errors, classes) for name, paths in files.items()}
    return gathered(makers, options.root, None, options.errors, notes, labelled=labelled)


KEY = re.compile(r"\bdataset\.(root|\w+_column|label_separator|group|documents|encoding|errors)\b")  # no file dataset.csv


@contextlib.contextmanager
def as_downstream(names: dict[str, str] | None = None) -> Iterator[None]:
    """For keys of a labelled problem: messages name these instead of a dataset's. `names`: what they are called there."""
    try:
        yield
    except UserError as error:
        known = names or {}
        lines = [re.sub(KEY, lambda m: f"downstream.{known.get(m[1], m[1])}", line) for line in error.args]
        raise UserError(*lines) from None


def files_by_split(root: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """The files of each split: folders or files named train, val and test; where none is named so, everything is train."""
    place = place_of(root)
    if place.is_file():
        if place.suffix.lower() not in suffixes:
            raise UserError(
                f"dataset.root={root}: expected a file ending in {' '.join(suffixes)}, or a folder of such files{unpack(place)}"
            )
        return {"train": [place]}
    if not place.is_dir():
        raise UserError(f"dataset.root={root}: {absent(place, 'file or folder')}")
    files = without_json(files_below(place, suffixes, others := list[str]()))
    if not files:
        left_out = "".join(f"; {note}" for note in others)
        raise UserError(f"dataset.root={root}: no texts there (files ending in {' '.join(suffixes)}){left_out}")
    return by_split(place, files) or {"train": files}


def folders(place: Path, files: dict[str, list[Path]]) -> dict[Path, str]:
    """The class folder of every file, below that of its split; empty where some lie in none, or all in one."""
    folder_of = {}
    for path in chain(*files.values()):
        inside = path.relative_to(place).parts if path != place else (path.name,)
        if inside[0].lower() in SPLITS:
            inside = inside[1:]
        if len(inside) > 1:
            folder_of[path] = readable(nfc(inside[0]))
    whole = len(folder_of) == sum(map(len, files.values()))
    return folder_of if whole and len(set(folder_of.values())) > 1 else {}


def by_split(place: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files below a folder by split, as their own name says, or that of a folder in it; where no name says anything,
    nothing.

    Raises UserError where some say of which split they are and others do not (a README may be beside them), or none is train.
    """
    splits: dict[str, list[Path]] = {}
    others = []
    for path in files:
        first = path.relative_to(place).parts[0]
        name = re.sub(r"-\d+-of-\d+$", "", path.stem) if first == path.name else first
        if name.lower() in SPLITS:
            splits.setdefault(SPLITS[name.lower()], []).append(path)
        elif name.lower() != "readme":
            others.append(path)
    if not splits:
        return {}
    named = next(path for paths in splits.values() for path in paths).relative_to(place)
    if others:
        unnamed = ", ".join(printable(str(path.relative_to(place))) for path in others[:5])
        raise UserError(
            f"{place}: {printable(str(named))} says of which split it is, but not {unnamed}; call files, or the folders that "
            "they are in, train, val or test, or take them away"
        )
    if "train" not in splits:
        raise UserError(
            f"{place}: there is {printable(str(named))}; expected a file or folder called train beside it, or the file itself"
        )
    return splits


def all_texts(paths: list[Path], kind: str, encoding: str, errors: str, classes: dict[Path, str]) -> Iterator[Row]:
    """The documents of .txt files, with the class of the file where it has one."""
    for path in paths:
        block, label = list[str](), classes.get(path)
        for number, line in enumerate(lines(path, encoding, errors), start=1):
            if kind == "lines":
                if text := line.strip():
                    yield Row(f"{path}:{number}", text, label=label)
            elif kind == "file" or line.strip():
                block.append(line)
            elif block:
                yield Row(f"{path}:{number}", "\n".join(block), label=label)
                block = []
        text = "\n".join(block).strip("\n")
        if text or kind == "file":  # an empty file is an empty text, which is counted and left out as in tables
            yield Row(str(path), text, label=label)
