"""Masks of COCO's format: polygons and runs (RLE) of objects in a JSON file, painted as the class of each pixel."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ptmrun.data.sources import IGNORED, Part, Source, palettes
from ptmrun.data.sources.boxes import coco
from ptmrun.data.sources.boxes.annotated import Images, listed
from ptmrun.data.sources.folders import absent, place_of, readable, unpack
from ptmrun.data.sources.imagefolder import Files
from ptmrun.data.sources.maskfolder import shown
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

GROUND = "background"
CORNERS = 3  # of a polygon, at least


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
        raise UserError("dataset.root: the folder is needed that holds images and COCO's JSON, as in dataset.root=photos")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    notes, faults, images = list[str](), list[str](), Images(root)
    tables = {split: (path, coco.loaded(path)) for split, path in coco.by_split(root, options).items()}
    known: dict[int, str] = {}
    for path, content in tables.values():
        for number, name in coco.categories_of(path, content).items():
            if known.setdefault(number, name) != name:
                raise UserError(f"{path}: category {number} is {name}, in another split {known[number]}; make them the same")
    if len(known) >= palettes.MOST:
        raise UserError(f"dataset.root={options.root}: {len(known)} categories; expected at most {palettes.MOST - 1}")
    number_of = {identity: place for place, identity in enumerate(sorted(known), start=1)}
    classes = [GROUND, *(printable(known[identity]) for identity in sorted(known))]
    parts, digest = {}, hashlib.sha256(repr(classes).encode())
    for split, (path, content) in tables.items():
        shapes = painted(path, content, number_of, images, split, notes, faults)
        names = [images.name_of(place) for place in shapes]
        masks = PaintedMasks(list(shapes.values()), classes, [readable(name) for name in names])
        for name, own in zip(names, hashes(shapes), strict=True):
            digest.update(os.fsencode(f"{split}/{name}/{own}\n"))
        digest.update(masks.fingerprint.encode())
        parts[split] = Part(Files(root, names), None, masks=masks)
    return Source(parts, classes, digest.hexdigest(), notes, faults=tuple(faults))


def painted(
    path: Path,
    content: dict[str, Any],
    number_of: dict[int, int],
    images: Images,
    split: str,
    notes: list[str],
    faults: list[str],
) -> dict[Path, tuple[int, int, list[Shape]] | None]:
    """The images of a file, and of each its height, width and what is to be painted. What stands for none is left out and listed.
    Raises UserError where no image is there, or has an outlined object."""
    places, sizes = dict[Any, Path](), dict[Path, tuple[int, int]]()
    lost = []
    for row in content["images"]:
        place = images.named(str(row.get("file_name", "")), split)
        if place is None:
            lost.append(printable(str(row.get("file_name"))))
            continue
        places[row.get("id")] = place
        sizes[place] = size_of(place)
        if (row.get("height"), row.get("width")) not in (sizes[place], (None, None)):
            told = f"is {sizes[place][1]}x{sizes[place][0]}, in {path.name} {row.get('width')}x{row.get('height')}"
            raise UserError(f"{place}: {told}: outlines would lie elsewhere; mend the JSON or the image")
    if lost:
        notes.append(listed(f"images of {path.name} are not there and left out", lost))
        faults += [f"{path.name}: image {name}: is not there; left out" for name in lost]
    objects: dict[Path, list[Shape]] = {}
    before = len(faults)
    for order, row in enumerate(content["annotations"]):
        where, place = f"annotation {printable(str(row.get('id', f'number {order}')))}", places.get(row.get("image_id"))
        if place is None:
            continue  # of an image that is not there
        if row.get("category_id") not in number_of:
            faults.append(f"{images.name_of(place)}: {where}: no category has its category_id {row.get('category_id')}; left out")
            continue
        outline = row.get("segmentation")
        if isinstance(outline, list):
            whole = [p for p in outline if isinstance(p, list) and len(p) >= 2 * CORNERS and len(p) % 2 == 0]
            if len(whole) < len(outline):
                faults.append(f"{images.name_of(place)}: {where}: polygons of fewer than {CORNERS} corners; left out")
            outline = whole
        if not outline:
            faults.append(f"{images.name_of(place)}: {where}: has no outline; left out")
            continue
        area = row.get("area")
        shape = Shape(number_of[row["category_id"]], outline, bool(row.get("iscrowd")), float(area or 0))
        objects.setdefault(place, []).append(shape)
    if len(faults) > before:
        notes.append(f"Warning: {split}: {len(faults) - before:,} outlines are no outlines and are left out (faults.txt)")
    if not objects:
        raise UserError(f"{path}: no image that is there has an object with a segmentation")
    if bare := [images.name_of(place) for place in sizes if place not in objects]:
        notes.append(listed(f"images of the {split} split have no object and are for pretraining alone", bare))
    return {place: (*size, objects[place]) if place in objects else None for place, size in sizes.items()}


def size_of(path: Path) -> tuple[int, int]:
    """(height, width), as the image is shown. Raises UserError for what is no image."""
    try:
        with Image.open(path) as image:
            width, height = shown(image)
            return height, width
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be opened as an image ({error}); mend it, or take it out of the JSON") from None
