"""Masks of COCO's format: polygons and runs (RLE) of objects in a JSON file, painted as the class of each pixel."""

import hashlib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ptmrun.data.sources import IGNORED, Part, Source, palettes
from ptmrun.data.sources.folders import SPLITS, absent, files_below, nfc, place_of, readable, split_folders, unpack
from ptmrun.data.sources.imagefolder import SUFFIXES, Files
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

GROUND = "background"
CORNERS = 3  # of a polygon, at least
SHOWN = 3  # files in a message


class Shape(NamedTuple):
    """An object: its class from 1, its polygons or run lengths, whether it is a crowd, its area."""

    number: int
    outline: Any
    crowd: bool
    area: float


class PaintedMasks:
    """Of each image its height, width and objects; None: it has no annotations, or is not in the file. The largest is painted
    first, so that smaller ones lie on it; where there are only crowds, pixels are IGNORED."""

    def __init__(self, shapes: list[tuple[int, int, list[Shape]] | None], classes: list[str], names: list[str]):
        self.shapes, self.classes, self.names = shapes, classes, names
        self.palette = palettes.usual(len(classes))
        self.fingerprint = hashlib.sha256(json.dumps([classes, shapes], default=str).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.shapes)

    def has(self, index: int) -> bool:
        return self.shapes[index] is not None

    def mask(self, index: int) -> np.ndarray | None:
        if (known := self.shapes[index]) is None:
            return None
        height, width, objects = known
        whole = np.zeros((height, width), dtype=np.uint8)
        for one in sorted(objects, key=lambda x: (not x.crowd, -x.area)):
            whole[inside(one.outline, height, width, self.names[index])] = IGNORED if one.crowd else one.number
        return whole


def inside(outline: Any, height: int, width: int, name: str) -> np.ndarray:
    """bool [H, W]. Raises UserError for what is no outline of COCO's."""
    from faster_coco_eval.core import mask

    try:
        runs = outline
        if isinstance(outline, list):
            runs = mask.merge(mask.frPyObjects([[float(x) for x in polygon] for polygon in outline], height, width))
        elif isinstance(outline["counts"], list):
            runs = mask.frPyObjects(outline, height, width)
        else:
            runs = {"size": outline["size"], "counts": outline["counts"].encode()}
        area = mask.decode(runs)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{name}: an object's segmentation is none of COCO's: {str(error).splitlines()[0][:120]}") from None
    if area.shape != (height, width):
        raise UserError(f"{name}: an object's segmentation is for {area.shape[1]}x{area.shape[0]}, the image is {width}x{height}")
    return area.astype(bool)


def read(options: Any) -> Source:
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError("masks of COCO's format need faster-coco-eval; install with: pip install 'ptmrun[detection]'")
    if not options.root:
        raise UserError("dataset.root: the folder is needed that holds images and COCO's JSON, as in dataset.root=coco")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    notes: list[str] = []
    tables = {split: table(file) for split, file in annotations(root).items()}
    known = {c["id"]: printable(str(c["name"])) for t in tables.values() for c in t["categories"]}
    if len(known) > palettes.MOST - 1:
        raise UserError(f"dataset.root={options.root}: {len(known)} categories; expected at most {palettes.MOST - 1}")
    number_of = {identity: place for place, identity in enumerate(sorted(known), start=1)}
    classes = [GROUND, *(known[identity] for identity in sorted(known))]
    files = [str(p.relative_to(root)) for p in files_below(root, SUFFIXES)]
    parts, digest = {}, hashlib.sha256(repr(classes).encode())
    for split, content in tables.items():
        paths, shapes = painted(content, number_of, files, split, notes)
        masks = PaintedMasks(shapes, classes, [readable(p) for p in paths])
        for path, own in zip(paths, hashes([root / p for p in paths]), strict=True):
            digest.update(os.fsencode(f"{split}/{path}/{own}\n"))
        digest.update(masks.fingerprint.encode())
        parts[split] = Part(Files(root, paths), None, masks=masks)
    return Source(parts, classes, digest.hexdigest(), notes)


def annotations(root: Path) -> dict[str, Path]:
    """{split: its JSON}: in folders called as splits are, or told apart by their names; one alone is of all. Raises UserError."""
    found: dict[str, Path] = {}
    for split, folder in split_folders(root, []).items():
        files = sorted(folder.glob("*.json"))
        if len(files) == 1:
            found[split] = files[0]
    if "train" in found:
        return found
    files = sorted(p for folder in (root, root / "annotations") for p in folder.glob("*.json"))
    segmented = [p for p in files if p.stem.startswith("instances")] or files
    for path in segmented:
        own = next((name for word, name in SPLITS.items() if word in path.stem.lower()), None)
        if own in found:
            raise UserError(f"{found[own]} and {path.name}: both are of the {own} split; put one of them elsewhere")
        if own:
            found[own] = path
    if len(segmented) == 1:
        return {"train": segmented[0]}
    if "train" not in found:
        there = ", ".join(printable(p.name) for p in files[:SHOWN]) or "none"
        raise UserError(
            f"{root}: expected a JSON file of COCO's, or one each with train, val and test in its name; there is: {there}"
        )
    return found


def table(path: Path) -> dict[str, Any]:
    """Raises UserError for what is none of COCO's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    keys = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }
    for key, wanted in keys.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"{path}: has no {key}; expected COCO's images, annotations and categories, lists that are not empty")
        for row in rows:
            if not isinstance(row, dict) or not all(name in row for name in wanted):
                raise UserError(f"{path}: one of its {key} lacks {', '.join(wanted)}, which COCO's have")
    return content


def painted(
    content: dict[str, Any], number_of: dict[Any, int], files: list[str], split: str, notes: list[str]
) -> tuple[list[str], list[tuple[int, int, list[Shape]] | None]]:
    """The images of a table, and of each what is to be painted. Raises UserError where one is not there."""
    times = Counter(nfc(os.path.basename(name)) for name in files)
    at = {last: name for name in files if times[last := nfc(os.path.basename(name))] == 1} | {nfc(name): name for name in files}
    objects: dict[Any, list[Shape]] = {}
    without = bad = 0
    for row in content["annotations"]:
        outline, crowd = row.get("segmentation"), bool(row.get("iscrowd", 0))
        if row["category_id"] not in number_of:
            raise UserError(f"the {split} annotations name category {row['category_id']}, which is not in their categories")
        if isinstance(outline, list):
            whole = [p for p in outline if isinstance(p, list) and len(p) >= 2 * CORNERS and len(p) % 2 == 0]
            bad += len(outline) - len(whole)
            outline = whole
        if not outline:
            without += 1
            continue
        shape = Shape(number_of[row["category_id"]], outline, crowd, float(row.get("area") or 0))
        objects.setdefault(row["image_id"], []).append(shape)
    paths: list[str] = []
    shapes: list[tuple[int, int, list[Shape]] | None] = []
    absent_files, seen, twice = list[str](), set[str](), 0
    for row in content["images"]:
        name = nfc(str(row["file_name"]))
        path = next((at[n] for n in (name, f"{split}/{name}", os.path.basename(name)) if n in at), None)
        if path is None:
            absent_files.append(name)
        elif path in seen:
            twice += 1
        else:
            seen.add(path)
            paths.append(path)
            own = objects.get(row["id"])
            shapes.append((int(row["height"]), int(row["width"]), own) if own else None)
    if absent_files:
        shown = ", ".join(map(printable, absent_files[:SHOWN]))
        raise UserError(f"{len(absent_files):,} images of the {split} annotations are not there (or twice): {shown}")
    for number, what in (
        (bad, f"polygons of fewer than {CORNERS} corners are left out"),
        (without, "objects have no outline and are left out"),
        (twice, "images are listed twice and are taken once"),
        (sum(s is None for s in shapes), "images have no outlined object and are for pretraining alone"),
    ):
        if number:
            notes.append(f"Warning: {split}: {number:,} {what}")
    return paths, shapes
