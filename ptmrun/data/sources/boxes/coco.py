"""COCO's JSON (Lin et al. 2014, arXiv:1405.0312): images, annotations with bbox [left, top, width, height], categories."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ptmrun.data.sources.boxes.annotated import Annotated, Box, Found, Images, listed, split_of
from ptmrun.data.sources.folders import files_below, nfc
from ptmrun.errors import UserError, printable

KEYS = ("images", "annotations", "categories")
PREFERRED = "instances"  # of several files of a split, as COCO itself has them
HEAD = 2**16  # bytes of a file, by which it is told to be one


def there(root: Path) -> bool:
    return bool(files(root))


def files(root: Path) -> list[Path]:
    """The .json files that may be meant: those that speak of images, or of nothing."""
    found = []
    for path in files_below(root, {".json"}):
        with open(path, "rb") as file:
            head = file.read(HEAD)
        if not head.strip(b" \n\r\t\xef\xbb\xbf[]{}") or any(f'"{key}"'.encode() in head for key in KEYS):
            found.append(path)
    return found


def read(root: Path, options: Any) -> Found:
    found, images = Found({}, [], []), Images(root)
    chosen = by_split(root, options)
    categories: dict[int, str] = {}
    for split, path in chosen.items():
        content = loaded(path)
        known = categories_of(path, content)
        for number, name in known.items():
            if categories.setdefault(number, name) != name:
                raise UserError(f"{path}: category {number} is {name}, in another split {categories[number]}; make them the same")
        found.parts[split] = pictures(path, content, known, images, split, found)
    found.numbers = sorted(categories)
    found.categories = [categories[number] for number in found.numbers]
    if twice := [name for name, n in Counter(found.categories).items() if n > 1]:
        raise UserError(f"{next(iter(chosen.values()))}: two categories are called {twice[0]}; give each a name of its own")
    ids = found.numbers
    if ids != list(range(ids[0], ids[0] + len(ids))):
        shown = ", ".join(map(str, ids[:6])) + (", ..." if len(ids) > 6 else "")
        told = "classes are numbered without; predictions are written with these ids"
        found.notes.append(f"category ids have gaps ({shown}): {told}")
    used = {picture.path for part in found.parts.values() for picture in part}
    if more := [images.name_of(p) for p in images.paths if p not in used]:
        found.notes.append(f"{listed('images are in no JSON and left out', more)}")
        found.faults += [f"{name}: is in no JSON; left out" for name in more]
    return found


def by_split(root: Path, options: Any) -> dict[str, Path]:
    """{split: its file}. Raises UserError where two may be meant."""
    candidates = files(root)
    if options.annotations:
        candidates = [root / options.annotations]
        if not candidates[0].is_file():
            raise UserError(f"dataset.annotations={options.annotations}: there is no such file in {root}")
    if not candidates:
        raise UserError(f"{root}: holds no .json with images, annotations and categories")
    result: dict[str, Path] = {}
    for path in candidates:
        split = split_of(path.relative_to(root)) if len(candidates) > 1 else "train"
        if split in result:
            first = [p for p in (result[split], path) if p.name.startswith(PREFERRED)]
            if len(first) != 1:
                both = f"{result[split].relative_to(root)} and {path.relative_to(root)}"
                raise UserError(f"{root}: {both} are both the {split} split; name one: dataset.annotations=FILE")
            path = first[0]
        result[split] = path
    if "train" not in result:
        raise UserError(f"{root}: there is {', '.join(p.name for p in result.values())}, but no file of the training split")
    return result


def loaded(path: Path) -> dict[str, Any]:
    """Raises UserError for what is not COCO's."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if text.strip() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    if content in (None, [], {}):
        raise UserError(f"{path}: is empty; expected COCO's {', '.join(KEYS)}")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in KEYS):
        lacking = [key for key in KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
        raise UserError(f"{path}: has no list of {lacking[0]}; expected COCO's {', '.join(KEYS)}")
    for key in KEYS:
        if not content[key] and key != "annotations":
            raise UserError(f"{path}: its list of {key} is empty; expected at least one")
        if strange := next((x for x in content[key] if not isinstance(x, dict)), None):
            raise UserError(f"{path}: {key}: expected objects, found {str(strange)[:40]}")
    return content


def categories_of(path: Path, content: dict[str, Any]) -> dict[int, str]:
    known: dict[int, str] = {}
    for entry in content["categories"]:
        number, name = entry.get("id"), entry.get("name")
        if type(number) is not int or not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: categories: {str(entry)[:60]}: expected an id (a number) and a name")
        if known.setdefault(number, nfc(name)) != nfc(name):
            raise UserError(f"{path}: categories: id {number} is {known[number]} and {name}; give each an id of its own")
    return known


def pictures(
    path: Path, content: dict[str, Any], known: dict[int, str], images: Images, split: str, found: Found
) -> list[Annotated]:
    """The pictures of a file. What stands for no picture, or no box, is left out and listed."""
    by_id: dict[Any, Annotated | None] = {}
    by_path: dict[Path, Annotated] = {}
    absent, twice, crowds = [], [], 0
    for entry in content["images"]:
        number, name = entry.get("id"), entry.get("file_name")
        if not isinstance(number, int | str) or not isinstance(name, str):
            raise UserError(f"{path}: images: {str(entry)[:60]}: expected an id and a file_name")
        place = images.named(name, split)
        if place is None:
            absent.append(printable(name))
            by_id[number] = None
            continue
        if number in by_id and by_id[number] is not by_path.get(place):
            raise UserError(f"{path}: images: two have the id {number}; give each an id of its own")
        if place in by_path:
            twice.append(printable(name))
        width, height = entry.get("width"), entry.get("height")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0 else None
        by_path.setdefault(place, Annotated(place, images.name_of(place), [], size))
        by_id[number] = by_path[place]
    if absent:
        found.notes.append(f"{listed(f'images of {path.name} are not there and left out', absent)}")
        found.faults += [f"{path.name}: image {name}: is not there; left out" for name in absent]
    if twice:
        found.notes.append(f"{listed(f'images are listed twice in {path.name}: their boxes are put together', twice)}")
        found.faults += [f"{path.name}: image {name}: is listed twice; its boxes are put together" for name in twice]
    for order, entry in enumerate(content["annotations"]):
        where, image = f"annotation {printable(str(entry.get('id', f'number {order}')))}", entry.get("image_id")
        if not isinstance(image, int | str) or image not in by_id:
            found.faults.append(f"{path.name}: {where}: no image has its image_id {printable(str(image))}; left out")
            continue
        picture, box = by_id[image], entry.get("bbox")
        if picture is None:
            continue
        if entry.get("category_id") not in known:
            strange = printable(str(entry.get("category_id")))
            found.faults.append(f"{picture.name}: {where}: no category has its category_id {strange}; left out")
            continue
        if not isinstance(box, list) or len(box) != 4 or not all(type(x) in (int, float) and math.isfinite(x) for x in box):
            found.faults.append(f"{picture.name}: {where}: bbox is not four numbers; left out")
            continue
        left, top, width, height = map(float, box)
        crowd = bool(entry.get("iscrowd"))
        made = Box(known[entry["category_id"]], (left, top, left + width, top + height), crowd, where)
        crowds += crowd
        picture.boxes.append(made)
    if crowds:
        what = f"{crowds:,} crowd boxes (iscrowd) of the {split} split"
        found.notes.append(f"{what} are ignored: what is found there is not counted")
    return list(by_path.values())
