"""Your own images with captions: a table (.csv, .tsv, .jsonl, .json, .parquet) with a column of files and one of captions,
captions.txt, or a .txt file beside each image."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptmrun.data.sources import PairSource, Part, Source
from ptmrun.data.sources.dialect import alike, folded
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
from ptmrun.data.sources.imagefolder import ENDINGS, SUFFIXES, Files
from ptmrun.data.sources.labels import mended
from ptmrun.data.sources.picture_labels import likely, name_of, numbered
from ptmrun.data.sources.tables import TABLES, Columns, each_row, quotes, shortened, strictly, surveyed
from ptmrun.data.sources.textfile import lines
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

FILE = ("file_name", "file", "filename", "filepath", "file_path", "path", "image", "image_path", "image_name", "img")
CAPTION = ("caption", "captions", "text", "sentence", "sentences", "description", "comment")
LISTS = "captions.txt"  # a file and a caption a line, between them a tab or a comma
PREFERRED = ("captions", "metadata")  # which of several tables is meant
NUMBERED = re.compile(r"#\d+$")  # a.jpg#2 is the third caption of a.jpg


@dataclass
class Captioned:
    """An image of a split, with what its rows say of it."""

    path: Path
    where: str
    captions: list[str] = field(default_factory=list)
    label: Any = None
    group: Any = None
    together: Any = None


@dataclass
class Reading:
    """What is read, and what went wrong on the way."""

    options: Any
    root: Path
    notes: list[str] = field(default_factory=list)
    images: dict[str, dict[Path, Captioned]] = field(default_factory=dict)  # by split
    empty: list[str] = field(default_factory=list)  # rows without a caption
    missing: list[str] = field(default_factory=list)  # rows whose image is not there
    rows: int = 0

    def add(self, split: str, path: Path, where: str, caption: Any) -> Captioned | None:
        """Takes in a row; None where there is nothing to take."""
        self.rows += 1
        captions = [cleaned(c, where, self.options.errors) for c in (caption if isinstance(caption, list) else [caption])]
        if not (captions := [c for c in captions if c]):
            self.empty.append(where)
            return None
        if not path.is_file():
            self.missing.append(f"{readable(str(path))} ({where})")
            return None
        image = self.images.setdefault(split, {}).setdefault(path, Captioned(path, where))
        image.captions += [c for c in captions if c not in image.captions]
        return image


def cleaned(caption: Any, where: str, errors: str = "strict") -> str:
    """A caption on one line; "" where there is none. Raises UserError for what is no text."""
    if caption is None or caption != caption:  # NaN
        return ""
    if not isinstance(caption, str | int | float):
        raise UserError(f"{where}: expected a caption, found {printable(repr(caption))[:60]}")
    text = mended(str(caption)) if errors == "replace" else str(caption)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: half a surrogate pair (\\ud800 ...); mend it, or set dataset.errors=replace") from None
    if "\0" in text:
        raise UserError(f"{where}: holds NUL (\\u0000), so this is no text; remove it")
    return " ".join(text.split())


def read(options: Any) -> PairSource:
    """Raises UserError where there are no images with captions, or it is not clear which are meant."""
    if not options.root:
        raise UserError("dataset.root: a folder of images with captions is needed, or the table in it, as in dataset.root=photos")
    place = place_of(options.root)
    if place.is_file() and (place.suffix.lower() in TABLES or place.name.lower() == LISTS):
        reading, tables = Reading(options, place.parent), {"": place}
    elif place.is_dir():
        reading = Reading(options, inner_root(place, (*SUFFIXES, *TABLES, ".txt")))
        tables = tables_in(reading.root)
    else:
        what = f"expected a folder, or a table ({' '.join(TABLES)})" if place.exists() else absent(place, "file or folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(place)}")
    if tables:
        for split, table in tables.items():
            listed(reading, table, split, table.parent)
    else:
        for split, folder in (split_folders(reading.root, reading.notes) or {"": reading.root}).items():
            inside = tables_in(folder)
            for table in inside.values():
                listed(reading, table, split, folder)
            if not inside:
                beside(reading, folder, split or "train")
    return gathered(reading)


def tables_in(folder: Path) -> dict[str, Path]:
    """The tables of captions in a folder, by split where they are called so, else the one that there is, under "". Raises
    UserError where it is not clear which is meant."""
    names = [p for p in visible(folder) if p.is_file() and (p.suffix.lower() in TABLES or p.name.lower() == LISTS)]
    named = {SPLITS[p.stem.lower()]: p for p in names if p.stem.lower() in SPLITS}
    if "train" in named:
        return named
    best = [p for stem in PREFERRED for p in names if p.stem.lower() == stem][:1]
    if not best and len(names) > 1:
        several = ", ".join(p.name for p in names[:5])
        raise UserError(
            f"{printable(str(folder))}: several tables ({printable(several)}): name the one with the captions in dataset.root"
        )
    return {"": (best or names)[0]} if names else {}


def listed(reading: Reading, table: Path, split: str, base: Path) -> None:
    """The rows of a table. split: which these are of, or "" where the rows say it themselves."""
    options = reading.options
    if table.suffix.lower() == ".txt":
        for where, name, caption in text_lines(table, options):
            place = image_path(base, name)
            reading.add(split or of_folder(name) or "train", place, where, caption)
        return
    tabbed = [table] if table.suffix.lower() == ".tsv" else []
    head = Columns("", None, None, None, True, quotes(tabbed, True, options.encoding, options.errors, reading.notes))
    names, _ = surveyed(table, head, options.encoding, options.errors)
    chosen = {
        key: column(table, names, key, getattr(options, key), usual)
        for key, usual in (("file_column", FILE), ("caption_column", CAPTION), ("split_column", ("split",)))
    }
    for key in ("file_column", "caption_column"):
        if chosen[key] is None:
            what = "files" if key == "file_column" else "captions"
            raise UserError(
                f"dataset.{key}: {table} has no column that is called as one of {what} are; name it: {shortened(names)}"
            )
    for key, usual in (("label_column", ()), ("group", ()), ("together", ())):
        wanted = getattr(options, key)
        likeliest = likely(names) if wanted == "auto" and key == "label_column" else wanted
        chosen[key] = column(table, names, key, likeliest, usual)
    if chosen["split_column"] and not split:
        reading.notes.append(f"the splits are those of the column {printable(chosen['split_column'])} of {table.name}")
    used = head._replace(
        text=str(chosen["file_column"]),
        second=chosen["caption_column"],
        label=chosen["label_column"],
        group=chosen["group"],
        flags=tuple(c for key in ("split_column", "together") if (c := chosen[key])),
    )
    for where, row in strictly(each_row(table, used, options.encoding, options.errors)):
        named = row.get(str(chosen["file_column"]))
        name = named.strip() if isinstance(named, str) else ""
        if not name:
            reading.rows += 1
            reading.missing.append(f"no file named ({where})")
            continue
        own = split or split_of(row, chosen["split_column"], where) or of_folder(name) or "train"
        image = reading.add(own, image_path(base, name), where, row.get(str(chosen["caption_column"])))
        if image:
            for key in ("label_column", "group", "together"):
                value = name_of(row.get(str(chosen[key])), where) if chosen[key] else None
                setattr(image, key.removesuffix("_column"), value)


def column(table: Path, names: list[str], key: str, wanted: Any, usual: tuple[str, ...]) -> str | None:
    """The column of a table that is wanted, or of auto the first of the usual names that it has. Raises UserError."""
    if wanted is None:
        return None
    if wanted != "auto":
        if (same := alike(str(wanted), names)) is None:
            raise UserError(f"dataset.{key}={wanted}: {table} has no such column; it has: {shortened(names)}")
        return same
    known = {folded(name): name for name in names}
    return next((known[name] for name in usual if name in known), None)


def text_lines(table: Path, options: Any) -> Iterator[tuple[str, str, str]]:
    """(where, file, caption) of captions.txt; a first line that names the columns is left out."""
    for number, line in enumerate(lines(table, options.encoding, options.errors), start=1):
        if not line.strip():
            continue
        if "\t" in line:
            name, caption = line.split("\t", 1)
        else:
            name, _, caption = line.partition(",")
            if line.startswith('"') or caption.startswith('"'):
                cells = next(csv.reader([line]))
                name, caption = cells[0], ",".join(cells[1:])
        if number == 1 and folded(name) in FILE:
            continue
        yield f"{table}:{number}", NUMBERED.sub("", name.strip()), caption


def beside(reading: Reading, folder: Path, split: str) -> None:
    """Images with a .txt file of the same name, a caption a line."""
    paths = files_below(folder, (*SUFFIXES, ".txt"), reading.notes)
    texts = {p.with_suffix(""): p for p in paths if p.suffix.lower() == ".txt"}
    pictures = [p for p in paths if p.suffix.lower() != ".txt"]
    if not any(p.with_suffix("") in texts for p in pictures):
        raise UserError(
            f"dataset.root={reading.options.root}: no captions in {printable(str(folder))}: expected a table "
            f"({' '.join(TABLES)}) with a column of files and one of captions, {LISTS}, or a .txt file beside each image "
            f"({ENDINGS} ...)"
        )
    for path in pictures:
        if (text := texts.pop(path.with_suffix(""), None)) is None:
            continue
        captions = [line for line in lines(text, reading.options.encoding, reading.options.errors) if line.strip()]
        reading.add(split, path, readable(str(text)), captions)
    if texts:
        first = readable(str(next(iter(texts.values()))))
        reading.notes.append(f"{len(texts)} .txt files have no image of their name and are left out: {printable(first)} ...")


def image_path(base: Path, name: str) -> Path:
    """The image that a row names, relative to the folder of its table, or to the folder images in there."""
    for place in (base / name, base / "images" / name):
        if place.is_file():
            return place
    return place_of(str(base / name))


def of_folder(name: str) -> str | None:
    """The split that the first folder of a path is called after."""
    parts = Path(name).parts
    return SPLITS.get(parts[0].lower()) if len(parts) > 1 else None


def split_of(row: dict[str, Any], name: str | None, where: str) -> str | None:
    value = row.get(name) if name else None
    if name is None:
        return None
    if not isinstance(value, str) or (known := SPLITS.get(value.strip().lower())) is None:
        raise UserError(f"{where}: {printable(name)}={printable(str(value))[:40]}: expected train, val or test")
    return known


def gathered(reading: Reading) -> PairSource:
    """What was read as a source. Raises UserError where too much of it is not there."""
    options, root, notes = reading.options, reading.root, reading.notes
    if len(reading.missing) > options.max_unreadable * reading.rows:
        raise UserError(
            f"dataset.root={options.root}: {len(reading.missing):,} of {reading.rows:,} captions name an image that is not "
            f"there, the first: {printable(reading.missing[0])}; more than dataset.max_unreadable={options.max_unreadable:g}"
        )
    if reading.missing:
        notes.append(
            f"{len(reading.missing):,} captions whose image is not there are left out: {printable(reading.missing[0])} ..."
        )
    if reading.empty:
        notes.append(
            f"{len(reading.empty):,} of {reading.rows:,} rows have no caption and are left out: {printable(reading.empty[0])} ..."
        )
    if not reading.images.get("train"):
        there = f", but {' and '.join(reading.images)}" if reading.images else ""
        raise UserError(f"dataset.root={options.root}: no image with a caption to train on{there}")
    used = {path for images in reading.images.values() for path in images}
    if bare := [p for p in files_below(root, SUFFIXES) if p not in used]:
        notes.append(f"{len(bare):,} images have no caption and are left out: {printable(readable(str(bare[0])))} ...")
    sets = {name: list(images.values()) for name, images in reading.images.items()}
    numbers: dict[str, np.ndarray] = {}
    classes: list[str] = []
    if any(image.label is not None for images in sets.values() for image in images):
        values = {name: [image.label for image in images] for name, images in sets.items()}
        labels = numbered(values, f"dataset.label_column={options.label_column}", lambda name, row: sets[name][row].where)
        notes += labels.notes
        sets = {name: [sets[name][row] for row in rows] for name, rows in labels.rows.items()}
        numbers, classes = labels.numbers, labels.classes
    digest, parts = hashlib.sha256(), {}
    for name, images in sets.items():
        for key in ("group", "together"):
            if getattr(options, key) and (lacking := [i.where for i in images if getattr(i, key) is None]):
                raise UserError(f"dataset.{key}={getattr(options, key)}: {lacking[0]} has no value")
        paths = [image.path for image in images]
        for image, content in zip(images, hashes(paths), strict=True):
            own = [
                name,
                readable(os.path.relpath(image.path, root)),
                content,
                image.captions,
                image.label,
                image.group,
                image.together,
            ]
            digest.update(json.dumps(own).encode())
        files = Files(root, [os.path.relpath(path, root) for path in paths])
        groups = np.array([nfc(str(image.group)) for image in images]) if options.group else None
        parts[name] = Part(files, numbers.get(name), groups)
    source = Source(parts, classes, digest.hexdigest(), notes)
    captions = {name: [image.captions for image in images] for name, images in sets.items()}
    together = {name: [str(image.together) for image in images] for name, images in sets.items()}
    return PairSource(source, captions, together if options.together else None)
