"""The datasets library's layout for detection: metadata.jsonl with a file_name and objects a row, which have lists of bbox [left,
top, width, height] and of categories."""

import json
import math
from pathlib import Path
from typing import Any

from ptmrun.data.sources.boxes.annotated import Annotated, Box, Found, Images, listed, split_of
from ptmrun.data.sources.boxes.voc import without
from ptmrun.data.sources.folders import nfc
from ptmrun.errors import UserError, printable

TABLE = "metadata.jsonl"
BOXES, CATEGORIES = ("bbox", "bboxes", "boxes"), ("categories", "category", "labels", "label")


def files(root: Path) -> list[Path]:
    return [path for path in sorted(root.rglob(TABLE)) if b'"objects"' in path.read_bytes()[:65536]]


def there(root: Path) -> bool:
    return bool(files(root))


def read(root: Path, options: Any) -> Found:
    found, images, absent = Found({}, [], []), Images(root), []
    for path in files(root):
        split = split_of(path.relative_to(root))
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, objects = row["file_name"], row.get("objects") or {}
                boxes: list[Any] = next((objects[key] for key in BOXES if key in objects), [])
                categories: list[Any] = next((objects[key] for key in CATEGORIES if key in objects), [])
                fine = len(boxes) == len(categories)
            except (ValueError, KeyError, TypeError, AttributeError):
                fine = False
            if not fine:
                raise UserError(f"{path}:{number}: expected file_name and objects, with as many bbox as categories")
            place = images.named(str(path.parent.relative_to(root) / str(name)), split)
            if place is None:
                absent.append(printable(str(name)))
                continue
            picture = Annotated(place, images.name_of(place), [])
            for i, (box, category) in enumerate(zip(boxes, categories, strict=True), start=1):
                where = f"box {i} of {path.name}:{number}"
                four = isinstance(box, list) and len(box) == 4
                if not four or not all(type(x) in (int, float) and math.isfinite(x) for x in box):
                    found.faults.append(f"{picture.name}: {where}: bbox is not four numbers; left out")
                    continue
                left, top, width, height = map(float, box)
                picture.boxes.append(Box(nfc(str(category)), (left, top, left + width, top + height), False, where))
            found.parts.setdefault(split, []).append(picture)
    if absent:
        found.notes.append(listed("images of the table are not there and left out", absent))
        found.faults += [f"{name}: is not there; left out" for name in absent]
    without(found, images)
    names = {b.category for part in found.parts.values() for picture in part for b in picture.boxes}
    numeric = all(name.isdigit() for name in names)
    found.categories = sorted(names, key=int) if numeric else sorted(names)
    found.numbers = [int(name) for name in found.categories] if numeric else list(range(len(names)))
    return found
