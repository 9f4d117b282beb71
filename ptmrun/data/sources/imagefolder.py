"""Any folder of images: with or without class folders, with or without train / val / test folders."""

import contextlib
import csv
import hashlib
import json
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.data.sources.dialect import alike
from ptmrun.data.sources.folders import absent, files_below, inner_root, nfc, place_of, readable, split_folders, unpack
from ptmrun.data.sources.picture_labels import Labels, likely, name_of, numbered
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

# Kinds that Pillow reads by other programs, or knows without reading them.
NOT_READ = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF", "PDF", "FITS"}
Image.init()
SUFFIXES = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_READ}
STRAY = 0.05  # of the images, or one, that may stand outside of class folders and are left out
ENDINGS = ".png .jpg .webp .tif .bmp .gif"  # the best known of them
METADATA = ("metadata.csv", "metadata.jsonl")


class Files:
    """Image files in a fixed order."""

    def __init__(self, root: Path, paths: list[str]):
        self.root, self.paths = root, paths

    def __len__(self) -> int:
        return len(self.paths)

    def picture(self, index: int) -> Image.Image:
        return Image.open(self.root / self.paths[index])

    def label_of(self, index: int) -> str:
        return readable(self.paths[index])


def read(options: Any) -> Source:
    if not options.root:
        raise UserError("dataset.root: the folder of images is needed, as in dataset.root=photos")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    notes: list[str] = []
    if (inner := inner_root(root, SUFFIXES)) != root:
        notes.append(f"{printable(str(root))} holds one folder alone, so those in {printable(str(inner))} are taken")
    splits = split_folders(inner, notes) or {"train": inner}
    paths_of = {name: files_below(folder, SUFFIXES, notes) for name, folder in splits.items()}
    if not paths_of["train"]:
        left_out = "".join(f"; {note}" for note in notes)
        raise UserError(f"dataset.root={options.root}: no images in {splits['train']} (files ending in {ENDINGS} ...){left_out}")
    folders = list(splits.values())
    label = label_column(root, folders, options.label_column, splits["train"], paths_of["train"], notes)
    found: Labels | None = None
    if label:
        names = {name: [str(p.relative_to(root)) for p in paths] for name, paths in paths_of.items() if paths}
        key = f"dataset.label_column={label}"
        value_of = values_of(root, folders, label, key)
        values = {name: [value_of.get(nfc(file)) for file in files] for name, files in names.items()}
        found = numbered(values, key, lambda name, row: readable(names[name][row]))
    elif options.label_column:
        found = of_class_folders(splits, paths_of, notes)
    digest, older = hashlib.sha256(), hashlib.sha256()
    if found:
        notes += found.notes
        paths_of = {name: [paths_of[name][row] for row in rows] for name, rows in found.rows.items()}
    if found and label:
        digest.update(json.dumps([label, found.classes, {n: some.tolist() for n, some in found.numbers.items()}]).encode())
    group_of = values_of(root, folders, options.group, f"dataset.group={options.group}") if options.group else {}
    result = {}
    for name, paths in paths_of.items():
        for p, content in zip(paths, hashes(paths), strict=True):
            place = os.fsencode(f"{name}/{p.relative_to(root)}/")
            digest.update(place + content.encode() + b"\n")
            older.update(place + f"{p.stat().st_size}\n".encode())
        files = [str(p.relative_to(root)) for p in paths]
        if options.group and (lacking := [f for f in files if nfc(f) not in group_of]):
            raise UserError(f"dataset.group={options.group}: {root / lacking[0]} has no row, or no value, in {METADATA[0]}")
        if paths:
            groups = np.array([group_of[nfc(f)] for f in files]) if options.group else None
            result[name] = Part(Files(root, files), found.numbers[name] if found else None, groups)
    classes = [readable(c) for c in found.classes] if found else []
    return Source(result, classes, digest.hexdigest(), notes, "" if label else older.hexdigest())


def of_class_folders(
    splits: dict[str, Path], paths_of: dict[str, list[Path]], notes: list[str], noun: str = "images"
) -> Labels | None:
    """The folder of each of the files as its class, where all but a few stand in one. Raises UserError for one that training
    lacks."""
    parts_of = {name: [parts_below(splits[name], p) for p in paths] for name, paths in paths_of.items()}
    stray, images = sum(len(parts) == 1 for parts in parts_of["train"]), len(parts_of["train"])
    classes = sorted({parts[0] for parts in parts_of["train"] if len(parts) > 1})
    if stray and (stray > max(1, STRAY * images) or len(classes) < 2):
        if stray < images:
            notes.append(
                f"{stray} {noun} stand outside of class folders, so the folders are no classes (take them away and they are)"
            )
        return None
    rows, numbers, said = {}, {}, []
    for name, parts in parts_of.items():
        rows[name] = np.array([row for row, part in enumerate(parts) if len(part) > 1], dtype=np.int64)
        inside = [parts[row][0] for row in rows[name]]
        if out := len(parts) - len(inside):
            said.append(f"{out} {noun} of the {name} split that stand outside of its class folders are left out")
        if strange := sorted(set(inside) - set(classes)):
            there = ", ".join(map(readable, classes))
            raise UserError(f"{splits[name]}/{strange[0]}: a class that the training split does not have; it has {there}")
        numbers[name] = np.array([classes.index(folder) for folder in inside], dtype=np.int64)
    return Labels(rows, numbers, classes, said)


def parts_below(folder: Path, path: Path) -> tuple[str, ...]:
    """The names on the way from a folder to a file; that of its class in the form NFC, which may differ from split to split."""
    first, *rest = path.relative_to(folder).parts
    return nfc(first), *rest


def label_column(
    root: Path, folders: list[Path], wanted: str | None, train: Path, images: list[Path], notes: list[str]
) -> str | None:
    """The column of METADATA that gives the labels, if one does: the one that is asked for; of auto, where training has no two
    folders that can be classes, one that is called as labels are."""
    if wanted != "auto":
        return wanted
    tables = metadata(root, folders)
    columns: list[str] = []
    with contextlib.suppress(OSError, ValueError, csv.Error):  # where it is needed, that is said
        columns = rows_of(tables[0])[0] if tables else []
    if (likeliest := likely(columns)) is None:
        return None
    if len({parts_below(train, p)[0] for p in images if p.parent != train}) > 1:
        notes.append(f"labels are the class folders, not the column {likeliest} of {tables[0].name} (dataset.label_column)")
        return None
    notes.append(f"labels are the column {likeliest} of {tables[0].name} (dataset.label_column)")
    return likeliest


def metadata(root: Path, folders: list[Path]) -> list[Path]:
    """The tables in the root and the splits' folders."""
    return [f / name for f in dict.fromkeys([root, *folders]) for name in METADATA if (f / name).is_file()]


def values_of(root: Path, folders: list[Path], name: str, key: str) -> dict[str, str]:
    """Image (relative to the root, its name in the form NFC) -> its value in the column `name` of METADATA, in the root or the
    splits' folders; none where it is empty.

    As in Hugging Face's ImageFolder, `file_name` is a path relative to the folder of the table.
    """
    tables = metadata(root, folders)
    if not tables:
        raise UserError(f"{key}: there is no {METADATA[0]} with the columns file_name,{name} in {root} or its split folders")
    value_of: dict[str, str] = {}
    for table in tables:
        try:
            columns, rows = rows_of(table)
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{key}: {table} cannot be read: {error}") from None
        own, files = (alike(c, columns) for c in (name, "file_name"))
        if own is None or files is None:
            lacking = "file_name" if own else name
            raise UserError(f"{key}: {table} has no column {lacking}; it has: {', '.join(columns) or 'none'}")
        folder = table.parent.relative_to(root)
        for place, row in enumerate(rows, start=1):
            value = name_of(row.get(own), f"{key}: {table} row {place}")
            if value is not None:
                value_of[nfc(os.path.normpath(folder / str(row.get(files))))] = value
    return value_of


def rows_of(table: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """(columns, rows) of a table. Raises OSError, ValueError or csv.Error."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        if table.suffix == ".csv":
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)
        rows = [json.loads(line) for line in file if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected an object a line")
    return list(dict.fromkeys(chain.from_iterable(rows))), rows
