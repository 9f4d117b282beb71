"""Any folder of sounds: with or without class folders, train / val / test folders, tables beside them and transcripts."""

import hashlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptmrun.data.sources import AudioPart, AudioSource, sounds
from ptmrun.data.sources.dialect import folded
from ptmrun.data.sources.folders import (
    SPLITS,
    absent,
    files_below,
    inner_root,
    nfc,
    place_of,
    readable,
    split_folders,
    unpack,
    visible,
)
from ptmrun.data.sources.imagefolder import of_class_folders, parts_below
from ptmrun.data.sources.labels import mended
from ptmrun.data.sources.picture_labels import Labels, likely, name_of, numbered
from ptmrun.data.sources.tables import TABLES, Columns, surveyed, table
from ptmrun.data.sources.textfile import decoded
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

FILE = ("file_name", "file", "path", "audio", "filename", "audio_path", "wav")  # usual names of a column of files
TEXT = ("transcription", "transcript", "text", "sentence", "normalized_text", "raw_text")  # and of transcripts
BESIDE = ("", "clips", "audio", "wav", "wavs")  # folders beside a table in which its files may be
MOST_MISSING = 0.5  # of the files that tables name, that may not be there


class Rows(NamedTuple):
    """What tables say of files: {file, its path in the form NFC: {column: value}}, and their columns."""

    of: dict[str, dict[str, Any]]
    columns: dict[str, None]
    tables: list[str]


def read(options: Any) -> AudioSource:
    sounds.need("audio", "soundfile", "soxr")
    if not options.root:
        raise UserError("dataset.root: the folder of sounds is needed, as in dataset.root=clips")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    notes: list[str] = []
    if (inner := inner_root(root, (*sounds.SUFFIXES, *TABLES))) != root:
        notes.append(f"{printable(str(root))} holds one folder alone, so those in {printable(str(inner))} are taken")
        root = inner
    folders = split_folders(root, notes) or {"train": root}
    others = list[str]()
    paths_of = {name: files_below(folder, sounds.SUFFIXES, others) for name, folder in folders.items()}
    if not any(paths_of.values()):
        left_out = "".join(f"; {note}" for note in others)
        raise UserError(f"dataset.root={options.root}: no sounds in {root} (files ending in {sounds.ENDINGS} ...){left_out}")
    rows = rows_of(root, list(folders.values()), options, notes)
    if len(folders) == 1:
        paths_of = by_column(rows, root, paths_of["train"], notes)
        folders = dict.fromkeys(paths_of, root)
    found = labels_of(options, rows, root, folders, paths_of, notes)
    if found:
        notes += found.notes
        paths_of = {name: [paths_of[name][row] for row in chosen] for name, chosen in found.rows.items()}
    files = {name: [str(p.relative_to(root)) for p in paths] for name, paths in paths_of.items() if paths}
    texts = transcripts(options, rows, root, files, notes)
    groups, together = (column(rows, files, options, key) for key in ("group", "split_by"))
    digest = hashlib.sha256()
    for name, paths in files.items():
        for file, content in zip(paths, hashes([root / file for file in paths]), strict=True):
            digest.update(os.fsencode(f"{name}/{file}/") + content.encode() + b"\n")
    marks = [found.classes, {name: some.tolist() for name, some in found.numbers.items()}] if found else []
    digest.update(json.dumps([marks, texts, together], default=np.ndarray.tolist).encode())
    parts = {
        name: AudioPart(
            sounds.SoundFiles(root, paths),
            found.numbers[name] if found else None,
            texts.get(name),
            groups.get(name),
            together.get(name),
        )
        for name, paths in files.items()
    }
    return AudioSource(parts, [readable(c) for c in found.classes] if found else [], digest.hexdigest(), notes)


def rows_of(root: Path, folders: list[Path], options: Any, notes: list[str]) -> Rows:
    """Of the tables in the root and the splits' folders that have a column of files. Raises UserError for what cannot
    be read."""
    rows, columns, names, missing = dict[str, dict[str, Any]](), dict[str, None](), list[str](), list[str]()
    inside = chain.from_iterable(visible(folder) for folder in dict.fromkeys([root, *folders]))
    every = [path for path in inside if path.suffix.lower() in TABLES and path.is_file()]
    of_splits = [path for path in every if path.stem.lower() in SPLITS]
    if of_splits and len(of_splits) < len(every):  # Common Voice has others that list the same files again
        names_of = ", ".join(printable(path.name) for path in every if path not in of_splits)
        notes.append(f"beside the tables of splits, {names_of} is not used")
    for path in of_splits or every:
        head = Columns("", None, None, None, True)
        known = {folded(name): name for name in surveyed(path, head, options.encoding, options.errors)[0]}
        if (own := next((known[name] for name in FILE if name in known), None)) is None:
            notes.append(f"{printable(path.name)} has no column of files ({', '.join(FILE[:3])} ...) and is not used")
            continue
        head = head._replace(text=own, flags=tuple(known.values()))
        names.append(str(path.relative_to(root)))
        stem = SPLITS.get(path.stem.lower())
        for where, row in table(path, head, options.encoding, options.errors):
            value = row.pop(own)
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{where}: expected the name of a file in {own}, found {printable(repr(value))[:60]}")
            place = next((p for p in BESIDE if (path.parent / p / value).is_file()), None)
            if place is None:
                missing.append(where)
                continue
            if stem and "split" not in known:
                row["split"] = stem
            columns |= dict.fromkeys(row)
            key = nfc(os.path.relpath(path.parent / place / value, root))
            if key in rows:
                raise UserError(f"{where}: {printable(value)} stands there a second time; expected one row a file")
            rows[key] = row
    if missing:
        whole = f"{len(missing):,} of {len(missing) + len(rows):,} rows of {', '.join(names)} name files that are not there"
        if len(missing) > MOST_MISSING * (len(missing) + len(rows)):
            raise UserError(f"{whole}; the first: {missing[0]}")
        notes.append(f"{whole} and are left out, the first at {missing[0]}")
    return Rows(rows, columns, names)


def by_column(rows: Rows, root: Path, paths: list[Path], notes: list[str]) -> dict[str, list[Path]]:
    """Files by the column `split` of tables, where there is one; else all are training files."""
    own = next((name for name in rows.columns if folded(name) == "split"), None)
    if own is None:
        return {"train": paths}
    splits: dict[str, list[Path]] = {"train": []}
    without = 0
    for path in paths:
        value = rows.of.get(nfc(str(path.relative_to(root))), {}).get(own)
        if value is None or not str(value).strip():
            without += 1
        elif (name := SPLITS.get(str(value).strip().lower())) is None:
            raise UserError(f"{rows.tables[0]}: {path.name}: the split {printable(str(value))}; expected train, val or test")
        else:
            splits.setdefault(name, []).append(path)
    if not splits["train"]:
        raise UserError(f"{rows.tables[0]}: its column {own} names no file of the training split")
    notes.append(f"the splits are the column {own} of {rows.tables[0]}")
    if without:
        notes.append(f"{without:,} sounds have no row there, or no split, and are left out")
    return splits


def labels_of(
    options: Any, rows: Rows, root: Path, folders: dict[str, Path], paths_of: dict[str, list[Path]], notes: list[str]
) -> Labels | None:
    """Those of the column that is asked for; of auto the class folders, else a column that is called as labels are."""
    wanted = options.label_column
    if wanted is None:
        return None
    if wanted == "auto":
        inside = {
            parts_below(folders[name], p)[0] for name, paths in paths_of.items() for p in paths if p.parent != folders[name]
        }
        if len(inside) > 1 or (wanted := likely(rows.columns)) is None:
            try:
                found = of_class_folders(folders, paths_of, notes, "sounds")
            except UserError as error:
                raise UserError(f"{error}; where folders are no classes: dataset.label_column=null") from None
            return found if found and len(found.classes) > 1 else None
        notes.append(f"labels are the column {wanted} of {rows.tables[0]} (dataset.label_column)")
    key = f"dataset.label_column={wanted}"
    lacks(rows, wanted, key)
    names = {name: [str(p.relative_to(root)) for p in paths] for name, paths in paths_of.items() if paths}
    values = {
        name: [name_of(rows.of.get(nfc(file), {}).get(wanted), f"{key}: {file}") for file in files]
        for name, files in names.items()
    }
    return numbered(values, key, lambda name, row: readable(names[name][row]), noun="sounds")


def lacks(rows: Rows, wanted: str, key: str) -> None:
    """Raises UserError where tables have no such column."""
    if wanted not in rows.columns:
        there = f"; {' and '.join(rows.tables)} has: {', '.join(rows.columns)}" if rows.tables else "; there is no table of files"
        raise UserError(f"{key}: no such column{there}")


def column(rows: Rows, files: dict[str, list[str]], options: Any, key: str) -> dict[str, np.ndarray]:
    """The values of the column that an option names, of each split; nothing where it names none."""
    wanted = getattr(options, key)
    if wanted is None:
        return {}
    lacks(rows, wanted, f"dataset.{key}={wanted}")
    values = {name: [rows.of.get(nfc(file), {}).get(wanted) for file in some] for name, some in files.items()}
    for name, some in values.items():
        if without := [i for i, value in enumerate(some) if value is None or not str(value).strip()]:
            raise UserError(f"dataset.{key}={wanted}: {readable(files[name][without[0]])} has no value")
    return {name: np.array([nfc(mended(str(value).strip())) for value in some]) for name, some in values.items()}


def transcripts(
    options: Any, rows: Rows, root: Path, files: dict[str, list[str]], notes: list[str]
) -> dict[str, list[str | None]]:
    """Of each split, what is said in each of its files, None where that is not known: of the column that is asked for, or is
    called so, or of a .txt file of the same name beside it. Nothing where no file has one."""
    wanted = options.text_column
    if wanted is None:
        return {}
    if wanted == "auto":
        known = {folded(name): name for name in rows.columns}
        wanted = next((known[name] for name in TEXT if name in known), None)
    else:
        lacks(rows, wanted, f"dataset.text_column={wanted}")

    def of(file: str) -> str | None:
        if wanted is not None:
            value = rows.of.get(nfc(file), {}).get(wanted)
            if not isinstance(value, str | None):
                raise UserError(f"{file}: expected text in {wanted}, found {printable(repr(value))[:60]}")
            return value
        beside = (root / file).with_suffix(".txt")
        return "".join(decoded(beside, options.encoding, options.errors)) if beside.is_file() else None

    texts = {name: [of(file) for file in some] for name, some in files.items()}
    count, total = (sum(text is not None for some in texts.values() for text in some), sum(map(len, files.values())))
    if count:
        source = f"the column {wanted}" if wanted is not None else "the .txt file of the same name"
        notes.append(f"the transcripts are {source}: {count:,} of {total:,} sounds have one")
    return texts if count else {}
