"""Any folder of images: with or without class folders, with or without train / val / test folders."""

import csv
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.errors import UserError
from ptmrun.storage.content import hashes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jfif"}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
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
        return self.paths[index]


def read(options: Any) -> Source:
    if not options.root:
        raise UserError("dataset.root: the folder of images is needed, as in dataset.root=photos")
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(f"dataset.root={options.root}: no such folder")
    folders = [p for p in listed(root) if p.is_dir()]
    splits = {SPLITS[p.name.lower()]: p for p in folders if p.name.lower() in SPLITS}
    notes: list[str] = []
    if "train" not in splits:
        splits = {"train": root}
    paths_of = {name: files_below(folder, SUFFIXES) for name, folder in splits.items()}
    if not paths_of["train"]:
        raise UserError(
            f"dataset.root={options.root}: no images in {splits['train']} (files ending in {' '.join(sorted(SUFFIXES))})"
        )
    class_of = {name: [p.relative_to(splits[name]).parts for p in paths] for name, paths in paths_of.items()}
    if any(len(parts) == 1 for parts in class_of["train"]):
        stray = sum(len(parts) == 1 for parts in class_of["train"])
        classes: list[str] = []
        if stray < len(class_of["train"]):
            notes.append(f"{stray} images stand outside of class folders, so the folders are not taken as classes")
    else:
        classes = sorted({parts[0] for parts in class_of["train"]})
    if classes:
        for name, parts in class_of.items():
            if strange := sorted({p[0] for p in parts} - set(classes)):
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
        if options.group and (lacking := [f for f in files if f not in group_of]):
            raise UserError(f"dataset.group={options.group}: {root / lacking[0]} has no row, or no value, in {METADATA}")
        if paths:
            groups = np.array([group_of[f] for f in files]) if options.group else None
            result[name] = Part(Files(root, files), labels, groups)
    return Source(result, classes, digest.hexdigest(), notes, older.hexdigest())


def group_names(root: Path, folders: list[Path], name: str) -> dict[str, str]:
    """Image (relative to the root) -> its value in the column `name` of metadata.csv, in the root or the splits' folders.

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
        value_of |= {os.path.normpath(folder / file): value for file, value in pairs if value}
    return value_of


def listed(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of these endings below a folder, sorted by path; hidden ones are left out."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}")

    return sorted(
        Path(where) / name
        for where, _, names in os.walk(folder, onerror=fail)
        for name in names
        if Path(name).suffix.lower() in suffixes and not name.startswith(".")
    )
