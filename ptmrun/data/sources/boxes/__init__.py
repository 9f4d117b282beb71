"""Pictures with boxes: COCO JSON, Pascal VOC XML, YOLO text files, or the objects of metadata.jsonl as the datasets library has
them. Large pictures are cut into overlapping squares."""

from pathlib import Path
from typing import Any

from ptmrun.data.sources import Source
from ptmrun.data.sources.boxes import checks, coco, objects, voc, yolo
from ptmrun.data.sources.boxes.annotated import Annotated, Found
from ptmrun.data.sources.boxes.tiles import source_of
from ptmrun.data.sources.folders import absent, place_of, unpack
from ptmrun.errors import UserError

FORMATS = {"coco": coco, "voc": voc, "yolo": yolo, "objects": objects}
NAMES = {"coco": "COCO JSON", "voc": "Pascal VOC XML", "yolo": "YOLO text files", "objects": "objects of metadata.jsonl"}
EXPECTED = "a COCO .json, Pascal VOC .xml, YOLO .txt files beside images or in labels/, or metadata.jsonl with objects"


def read(options: Any) -> Source:
    """Raises UserError for what cannot be used."""
    if not options.root:
        raise UserError("dataset.root: the folder of images and boxes is needed, as in dataset.root=photos")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    found = read_format(root, options)
    if not any(found.parts.values()):
        raise UserError(f"dataset.root={options.root}: no image with boxes; expected {EXPECTED}")
    checks.sizes(found, options)
    checks.corners(found, options)
    checks.categories(found, options)
    return source_of(found, options)


def read_format(root: Path, options: Any) -> Found:
    """What the files say, in the format that is asked for or the first that is there."""
    wanted = [options.format] if options.format != "auto" else [name for name, module in FORMATS.items() if module.there(root)]
    if not wanted:
        raise UserError(f"dataset.root={options.root}: no boxes; expected {EXPECTED}")
    found = FORMATS[wanted[0]].read(root, options)
    others = f"; there is also {', '.join(NAMES[name] for name in wanted[1:])} (dataset.format)" if wanted[1:] else ""
    pictures: list[Annotated] = [picture for part in found.parts.values() for picture in part]
    count = sum(len(picture.boxes) for picture in pictures)
    found.notes.insert(0, f"{NAMES[wanted[0]]}: {count:,} boxes in {len(pictures):,} images{others}")
    return found
