"""YOLO's text files: a file an image, with a line a box: class, and centre, width and height as shares of the image's."""

import math
from pathlib import Path
from typing import Any

import yaml

from ptmrun.data.sources.boxes.annotated import Annotated, Box, Found, Images, listed, split_of
from ptmrun.data.sources.boxes.checks import measured
from ptmrun.data.sources.boxes.voc import without
from ptmrun.data.sources.folders import files_below, nfc
from ptmrun.errors import UserError, printable

NAMES = ("classes.txt", "obj.names", "names.txt", "classes.names")
NO_LABELS = {*NAMES, "readme.txt", "requirements.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt"}


def files(root: Path) -> list[Path]:
    paths = files_below(root, {".txt"})
    return [path for path in paths if path.name.lower() not in NO_LABELS and not path.name.startswith("README")]


def there(root: Path) -> bool:
    """Whether one of the first files has a line of a class and numbers, or all are empty beside images of the same names."""
    for path in files(root)[:50]:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[:3]:
            words = line.split()
            if len(words) >= 5 and words[0].isdigit() and all(share(word) is not None for word in words[1:5]):
                return True
    return False


def share(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read(root: Path, options: Any) -> Found:
    names = names_of(root)
    found, images = Found({}, [], []), Images(root)
    used, lonely, polygons = set(), [], 0
    for path in files(root):
        split = split_of(path.relative_to(root))
        place = images.named(path.stem, split)
        if place is None:
            lonely.append(str(path.relative_to(root)))
            continue
        sizes = measured(place)
        width, height = sizes[1] if sizes else (1, 1)  # of what cannot be opened, which is left out later
        picture = Annotated(place, images.name_of(place), [])
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
            words, where = line.split(), f"line {number} of {path.name}"
            if not words:
                continue
            values = [share(word) for word in words[1:]]
            several = len(values) >= 6 and len(values) % 2 == 0
            if not words[0].isdigit() or None in values or not (len(values) == 4 or several):
                told = f"expected a class and four numbers, found {printable(line[:40])}"
                found.faults.append(f"{picture.name}: {where}: {told}; left out")
                continue
            if names and int(words[0]) >= len(names):
                raise UserError(f"{path}:{number}: class {words[0]}; there are names of {len(names)} classes, from 0")
            shares: list[float] = [v for v in values if v is not None]
            if max(shares) > 1.5:
                raise UserError(f"{path}:{number}: {max(shares):g}: expected shares of the image's sides, 0 to 1, not pixels")
            if several:
                polygons += 1
                corners = (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
            else:
                x, y, w, h = shares
                corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            used.add(int(words[0]))
            left, top, right, bottom = corners
            picture.boxes.append(Box(words[0], (left * width, top * height, right * width, bottom * height), False, where))
        found.parts.setdefault(split, []).append(picture)
    if polygons:
        found.notes.append(f"{polygons:,} polygons: the boxes around them are taken")
    if lonely:
        found.notes.append(listed("labels have no image and are left out", lonely))
        found.faults += [f"{name}: has no image; left out" for name in lonely]
    without(found, images)
    found.numbers = list(range(len(names))) if names else sorted(used)
    found.categories = names or [str(number) for number in found.numbers]
    if not names:
        found.notes.append("no data.yaml or classes.txt with names: classes are called by their numbers")
    known = dict(zip(map(str, found.numbers), found.categories, strict=True))
    for picture in (picture for part in found.parts.values() for picture in part):
        picture.boxes = [box._replace(category=known[str(int(box.category))]) for box in picture.boxes]
    return found


def names_of(root: Path) -> list[str]:
    """Of the classes, in their order; none where there is no file of them. Raises UserError for a file that is not one."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())[:80]})") from None
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict):
            if sorted(names) != list(range(len(names))):
                raise UserError(f"{path}: names: expected the numbers 0 to {len(names) - 1}, found {sorted(map(str, names))[:5]}")
            names = [names[i] for i in range(len(names))]
        if isinstance(names, list) and names:
            return distinct(path, [nfc(str(name)) for name in names])
    for name in NAMES:
        if (path := root / name).is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return distinct(path, [nfc(line.strip()) for line in lines if line.strip()])
    return []


def distinct(path: Path, names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: two classes are called {printable(twice)}; give each a name of its own")
    return names
