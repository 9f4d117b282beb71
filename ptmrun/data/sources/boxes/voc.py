"""Pascal VOC's XML (Everingham et al. 2010): a file an image, with the corners of its objects; splits in ImageSets/Main."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from ptmrun.data.sources.boxes.annotated import Annotated, Box, Found, Images, listed, split_of
from ptmrun.data.sources.folders import SPLITS, files_below, nfc
from ptmrun.errors import UserError, printable

LISTS = Path("ImageSets", "Main")
WHOLE = {"trainval": "train", "test": "test"}  # splits where training and validation are one list
SIDES = ("xmin", "ymin", "xmax", "ymax")


def files(root: Path) -> list[Path]:
    """Those that have the root element of an annotation."""
    return [path for path in files_below(root, {".xml"}) if b"<annotation" in path.read_bytes()[:4096]]


def there(root: Path) -> bool:
    return bool(files(root))


def read(root: Path, options: Any) -> Found:
    found, images = Found({}, [], []), Images(root)
    given = lists(root)
    lonely, hard, first = [], 0, math.inf
    for path in files(root):
        split = given.get(nfc(path.stem)) if given else split_of(path.relative_to(root))
        if split is None:
            continue
        tree = parsed(path)
        name = (tree.findtext("filename") or "").strip()
        place = images.named(path.stem, split) or (images.named(name, split) if name else None)
        if place is None:
            lonely.append(printable(path.name))
            continue
        picture = Annotated(place, images.name_of(place), [], size_of(tree))
        for number, entry in enumerate(tree.iter("object"), start=1):
            where = f"object {number} of {path.name}"
            category, corners = nfc((entry.findtext("name") or "").strip()), corners_of(entry.find("bndbox"))
            if not category or corners is None:
                found.faults.append(f"{picture.name}: {where}: has no name, or no bndbox of four numbers; left out")
                continue
            difficult = (entry.findtext("difficult") or "0").strip() not in ("0", "")
            hard += difficult
            first = min(first, corners[0], corners[1])
            picture.boxes.append(Box(category, corners, difficult, where))
        found.parts.setdefault(split, []).append(picture)
    if first == 1:  # as Pascal VOC counts, the last pixel included
        for picture in (picture for part in found.parts.values() for picture in part):
            picture.boxes = [b._replace(corners=(b.corners[0] - 1, b.corners[1] - 1, *b.corners[2:])) for b in picture.boxes]
        found.notes.append("pixels are counted from 1, as Pascal VOC does: no box begins at 0 and some at 1")
    if hard:
        found.notes.append(f"{hard:,} difficult boxes are ignored: what is found there is not counted")
    if lonely:
        found.notes.append(listed("labels have no image and are left out", lonely))
        found.faults += [f"{name}: has no image; left out" for name in lonely]
    without(found, images, given)
    found.categories = sorted({b.category for part in found.parts.values() for picture in part for b in picture.boxes})
    found.numbers = list(range(len(found.categories)))
    return found


def without(found: Found, images: Images, given: dict[str, str] | None = None) -> None:
    """Lists the images that have no label."""
    used = {picture.path for part in found.parts.values() for picture in part}
    left = [p for p in images.paths if p not in used and (not given or nfc(p.stem) in given)]
    if names := [images.name_of(p) for p in left]:
        found.notes.append(listed("images have no label and are left out", names))
        found.faults += [f"{name}: has no label; left out" for name in names]


def lists(root: Path) -> dict[str, str]:
    """{stem of an image: its split} of ImageSets/Main; trainval holds what train and val do, and stands for train alone."""
    result: dict[str, str] = {}
    paths = sorted(root.rglob(str(LISTS / "*.txt")))
    known = {**SPLITS} if any(path.stem.lower() in SPLITS for path in paths if path.stem.lower() != "test") else WHOLE
    for path in paths:
        if split := known.get(path.stem.lower()):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if name := line.split()[:1]:
                    stem = nfc(name[0])
                    if result.setdefault(stem, split) != split:
                        raise UserError(f"{path}: {printable(stem)} is in the {result[stem]} split too; expected it in one")
    return result if "train" in result.values() else {}


def parsed(path: Path) -> ET.Element:
    """Raises UserError for what is no XML."""
    data = path.read_bytes()
    if b"<!ENTITY" in data:
        raise UserError(f"{path}: defines entities, which no annotation does; refused")
    try:
        return ET.fromstring(data)
    except ET.ParseError as error:
        raise UserError(f"{path}: is no XML: {error}") from None


def size_of(tree: ET.Element) -> tuple[int, int] | None:
    """None where it is not known, or 0."""
    width, height = (number(tree.findtext(f"size/{key}")) for key in ("width", "height"))
    return (int(width), int(height)) if width and height and width > 0 and height > 0 else None


def corners_of(box: ET.Element | None) -> tuple[float, float, float, float] | None:
    values = [number(box.findtext(key)) for key in SIDES] if box is not None else [None]
    return None if any(v is None for v in values) else tuple(values)  # type: ignore[return-value]


def number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
