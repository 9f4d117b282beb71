"""Any folder of images: with or without class folders, with or without train / val / test folders."""

import csv
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.data.sources.folders import absent, files_below, inner_root, nfc, place_of, split_folders, unpack
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

# Kinds that Pillow reads by other programs, or knows without reading them.
NOT_READ = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF", "PDF", "FITS"}
Image.init()
SUFFIXES = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NOT_READ}
STRAY = 0.05  # of the images, or one, that may stand outside of class folders and are left out
ENDINGS = ".png .jpg .webp .tif .bmp .gif"  # the best known of them
METADATA = "metadata.csv"


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


def readable(name: str) -> str:
    """A name as text, whatever bytes it has on disk."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
    class_of = {name: [parts_below(splits[name], p) for p in paths] for name, paths in paths_of.items()}
    stray = sum(len(parts) == 1 for parts in class_of["train"])
    few = 0 < stray <= max(1, STRAY * len(class_of["train"])) and len({parts[0] for parts in class_of["train"]}) > 2
    classes: list[str] = []
    if not stray or few:
        classes = sorted({parts[0] for parts in class_of["train"] if len(parts) > 1})
    elif stray < len(class_of["train"]):
        notes.append(
            f"{stray} images stand outside of class folders, so the folders are no classes (take them away and they are)"
        )
    if classes:
        for name, paths in paths_of.items():
            inside = [(p, parts) for p, parts in zip(paths, class_of[name], strict=True) if len(parts) > 1]
            if out := len(paths) - len(inside):
                notes.append(f"{out} images of the {name} split that stand outside of its class folders are left out")
            paths_of[name], class_of[name] = [p for p, _ in inside], [parts for _, parts in inside]
            if strange := sorted({parts[0] for _, parts in inside} - set(classes)):
                raise UserError(
                    f"{splits[name]}/{strange[0]}: a class that the training split does not have; it has {', '.join(classes)}"
                )
    digest, older = hashlib.sha256(), hashlib.sha256()
    group_of = group_names(root, list(splits.values()), options.group) if options.group else {}
    result = {}
    for name, paths in paths_of.items():
        for p, content in zip(paths, hashes(paths), strict=True):
            place = os.fsencode(f"{name}/{p.relative_to(root)}/")
            digest.update(place + content.encode() + b"\n")
            older.update(place + f"{p.stat().st_size}\n".encode())
        labels = np.array([classes.index(parts[0]) for parts in class_of[name]], dtype=np.int64) if classes else None
        files = [str(p.relative_to(root)) for p in paths]
        if options.group and (lacking := [f for f in files if nfc(f) not in group_of]):
            raise UserError(f"dataset.group={options.group}: {root / lacking[0]} has no row, or no value, in {METADATA}")
        if paths:
            groups = np.array([group_of[nfc(f)] for f in files]) if options.group else None
            result[name] = Part(Files(root, files), labels, groups)
    return Source(result, [readable(c) for c in classes], digest.hexdigest(), notes, older.hexdigest())


def parts_below(folder: Path, path: Path) -> tuple[str, ...]:
    """The names on the way from a folder to a file; that of its class in the form NFC, which may differ from split to split."""
    first, *rest = path.relative_to(folder).parts
    return nfc(first), *rest


def group_names(root: Path, folders: list[Path], name: str) -> dict[str, str]:
    """Image (relative to the root, its name in the form NFC) -> its value in the column `name` of metadata.csv, in the root or
    the splits' folders.

    As in Hugging Face's ImageFolder, `file_name` is a path relative to the folder of the table.
    """
    key = f"dataset.group={name}"
    tables = [f / METADATA for f in dict.fromkeys([root, *folders]) if (f / METADATA).is_file()]
    if not tables:
        raise UserError(f"{key}: there is no {METADATA} with the columns file_name,{name} in {root} or its split folders")
    value_of: dict[str, str] = {}
    for table in tables:
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                columns = rows.fieldnames or []
                if name not in columns or "file_name" not in columns:
                    lacking = name if name not in columns else "file_name"
                    raise UserError(f"{key}: {table} has no column {lacking}; it has: {', '.join(columns) or 'none'}")
                pairs = [(row["file_name"] or "", row[name]) for row in rows]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{key}: {table} cannot be read: {error}") from None
        folder = table.parent.relative_to(root)
        value_of |= {nfc(os.path.normpath(folder / file)): value for file, value in pairs if value}
    return value_of
