"""What is wrong with boxes, by file, before anything is trained on them: mended where it is clear what was meant, else left out
and listed; too much of it is an error."""

from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from ptmrun.data.images.decode import ORIENTATION
from ptmrun.data.sources.boxes.annotated import Annotated, Box, Found, listed
from ptmrun.errors import UserError

TURNED = {5, 6, 7, 8}  # of EXIF: width and height change places
SHAPE = 0.01  # by which the ratio of the sides may differ
LEAST = 1.0  # pixel of a side of a box


def every(found: Found) -> list[Annotated]:
    return [picture for part in found.parts.values() for picture in part]


def refuse_many(count: int, total: int, what: str, first: str, options: Any) -> None:
    """Raises UserError where more than dataset.max_faulty are."""
    if count > options.max_faulty * total:
        raise UserError(
            f"dataset.root={options.root}: {count:,} of {total:,} {what}, more than dataset.max_faulty={options.max_faulty:g}; "
            f"the first: {first}"
        )


def measured(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """(width, height) as stored, and upright; None where the picture cannot be opened."""
    try:
        with Image.open(path) as image:
            size, turned = image.size, image.getexif().get(ORIENTATION, 1) in TURNED
    except Exception:  # Pillow's decoders raise what they like at damaged bytes
        return None
    return size, (size[::-1] if turned else size)


def sizes(found: Found, options: Any) -> None:
    """Compares the sizes of pictures with those that the files of boxes tell. Boxes of a picture that was scaled are scaled;
    pictures of another shape are left out. Sets the size of each as it will be decoded."""
    wrong, scaled, broken, turned = [], [], [], []
    for name, part in found.parts.items():
        kept = []
        for picture in part:
            if (real := measured(picture.path)) is None:
                broken.append(picture.name)
                found.faults.append(f"{picture.name}: cannot be opened as an image; left out")
                continue
            stored, upright = real
            told, picture.size = picture.size, upright
            if told in (None, upright):
                kept.append(picture)
            elif told == stored:
                picture.raw, picture.size = True, stored
                turned.append(picture.name)
                kept.append(picture)
            elif told and abs(told[0] * upright[1] / (told[1] * upright[0]) - 1) < SHAPE:
                x, y = upright[0] / told[0], upright[1] / told[1]
                found.faults.append(f"{picture.name}: is {sized(upright)}, its boxes are for {sized(told)}; scaled")
                corners_of = [(box, *box.corners) for box in picture.boxes]
                picture.boxes = [box._replace(corners=(x * a, y * b, x * c, y * d)) for box, a, b, c, d in corners_of]
                scaled.append(picture.name)
                kept.append(picture)
            else:
                wrong.append(f"{picture.name} is {sized(upright)}, its boxes are for {sized(told)}")
                found.faults.append(f"{wrong[-1]}; left out")
        found.parts[name] = kept
    total = len(every(found)) + len(wrong) + len(broken)
    if wrong:
        refuse_many(len(wrong), total, "images have another shape than their boxes are for", wrong[0], options)
        found.notes.append(listed("images have another shape than their boxes are for and are left out", wrong, 1))
    if broken:
        refuse_many(len(broken), total, "images cannot be opened", broken[0], options)
        found.notes.append(listed("images cannot be opened and are left out", broken))
    if scaled:
        found.notes.append(listed("images have another size than their boxes are for, which are scaled to it", scaled))
    if turned:
        found.notes.append(listed("images are not turned as their EXIF says, since their boxes are not", turned))


def sized(size: tuple[int, int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else "?"


def corners(found: Found, options: Any) -> None:
    """Cuts boxes at the border of their picture, and leaves out those of no area and those outside; counts what the readers
    left out with them."""
    cut, twice, empty, outside = list[str](), list[str](), list[str](), list[str]()
    unread = [fault for fault in found.faults if "left out" in fault and ": has no " not in fault and "is in no " not in fault]
    unread = [fault for fault in unread if any(f": {word} " in fault for word in ("annotation", "object", "line", "box"))]
    total = len(unread)
    for picture in every(found):
        total += len(picture.boxes)
        assert picture.size is not None
        width, height = picture.size
        kept: list[Box] = []
        for box in picture.boxes:
            left, top, right, bottom = box.corners
            where = f"{picture.name}: {box.where}"
            if right <= left or bottom <= top:
                empty.append(where)
                found.faults.append(f"{where}: has no area ({numbers(box)}); left out")
                continue
            inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
            if inside[2] - inside[0] < LEAST or inside[3] - inside[1] < LEAST:
                tiny = right - left < LEAST or bottom - top < LEAST
                (empty if tiny else outside).append(where)
                why = "is smaller than a pixel" if tiny else f"is outside of the image of {sized(picture.size)}"
                found.faults.append(f"{where}: {why} ({numbers(box)}); left out")
                continue
            if max(abs(a - b) for a, b in zip(inside, box.corners, strict=True)) > LEAST:
                cut.append(where)
                found.faults.append(f"{where}: reaches beyond the image of {sized(picture.size)} ({numbers(box)}); cut there")
            box = box._replace(corners=inside)
            if any(other[:3] == box[:3] for other in kept):
                twice.append(where)
                found.faults.append(f"{where}: stands there twice; left out once")
                continue
            kept.append(box)
        picture.boxes = kept
    wrong = [*empty, *outside, *unread]
    if wrong:
        first = next(fault for fault in found.faults if fault.startswith(wrong[0]))
        refuse_many(len(wrong), total, "boxes are wrong", first, options)
    for what, names in (
        ("boxes have no area and are left out", empty),
        ("boxes are outside of their image and are left out", outside),
        ("boxes cannot be read and are left out", unread),
        ("boxes reach beyond their image and are cut", cut),
        ("boxes stand there twice and are left out once", twice),
    ):
        if names:
            found.notes.append(f"{listed(what, names, 1)}")
    if found.faults:
        found.notes.append(f"what was left out or mended is listed in faults.txt: {len(found.faults):,} lines")


def numbers(box: Box) -> str:
    return ", ".join(f"{c:g}" for c in box.corners)


def categories(found: Found, options: Any) -> None:
    """All boxes of one class where that is asked for. Categories without a box are left out; those that some splits lack are
    named. Raises UserError where nothing is left."""
    if options.one_class:
        found.notes.append(f"dataset.one_class: {', '.join(found.categories[:5])} are one class, object")
        found.categories, found.numbers = ["object"], found.numbers[:1]
        for picture in every(found):
            picture.boxes = [box._replace(category="object") for box in picture.boxes]
    counts = {name: Counter(b.category for p in part for b in p.boxes if not b.ignored) for name, part in found.parts.items()}
    if not (there := sum(counts.values(), Counter())):
        raise UserError(f"dataset.root={options.root}: its images have no box; expected at least one")
    if lacking := [name for name in found.categories if not there[name]]:
        found.notes.append(listed("categories have no box and are left out", lacking))
        pairs = [(n, c) for n, c in zip(found.numbers, found.categories, strict=True) if there[c]]
        found.numbers, found.categories = [n for n, _ in pairs], [c for _, c in pairs]
        for picture in every(found):
            picture.boxes = [box for box in picture.boxes if there[box.category]]
    for name, count in counts.items():
        if len(counts) > 1 and (none := [c for c in found.categories if not count[c]]):
            found.notes.append(listed(f"classes have no box in the {name} split", none))
    if empty := [p.name for p in every(found) if not p.boxes]:
        found.notes.append(listed("images have no box: they show what is none", empty))
