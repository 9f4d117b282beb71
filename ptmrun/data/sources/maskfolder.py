"""Your own images and a mask of each, in two folders, or in two of each of the folders train, val and test."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ptmrun.data.sources import IGNORED, Part, Source, palettes
from ptmrun.data.sources.folders import absent, files_below, inner_root, nfc, place_of, readable, split_folders, unpack, visible
from ptmrun.data.sources.imagefolder import SUFFIXES, Files
from ptmrun.errors import UserError, printable
from ptmrun.storage.content import hashes

IMAGES = ("images", "image", "imgs", "img", "jpegimages", "photos", "x")
MASKS = ("masks", "mask", "labels", "label", "annotations", "segmentationclass", "segmentation", "gt", "y")
ENDINGS = ("_mask", "-mask", "_masks", "_label", "_labels", "_seg", "_gt", "_l")  # of a mask's name, after that of its image
CLASSES = "classes.txt"
LOSSLESS = {".png", ".bmp", ".tif", ".tiff", ".gif"}
SHOWN = 3  # files in a message
ORIENTATION = 0x0112  # in EXIF
TURNED = (5, 6, 7, 8)  # of its values, those that exchange width and height
SAME = 0.02  # by which the proportions of an image and its mask may differ, by rounding
DRAWN, FEW = 16, 8  # gray levels that are drawn to be seen are this far apart, and this many at most


class Unusable(ValueError):
    """Why a file is no mask."""


class FileMasks:
    """Masks in files; paths: of each image, None where it has none. numbers [256]: of each value in them its class."""

    def __init__(self, root: Path, paths: list[str | None], classes: list[str], palette: list[list[int]], numbers: np.ndarray):
        self.root, self.paths, self.classes, self.palette, self.numbers = root, paths, classes, palette, numbers
        self.fingerprint = ""

    def __len__(self) -> int:
        return len(self.paths)

    def has(self, index: int) -> bool:
        return self.paths[index] is not None

    def mask(self, index: int) -> np.ndarray | None:
        path = self.paths[index]
        if path is None:
            return None
        try:
            return self.numbers[values(self.root / path)]
        except Unusable as error:
            raise UserError(f"{self.root / path}: {error}") from None


class Pairs(NamedTuple):
    """The images of a split, sorted, the mask of each or None, and masks that are of none of them."""

    images: list[Path]
    masks: list[Path | None]
    alone: list[Path]


def read(options: Any) -> Source:
    if not options.root:
        raise UserError("dataset.root: the folder is needed that holds images/ and masks/, as in dataset.root=tiles")
    root = place_of(options.root)
    if not root.is_dir():
        what = "is no folder" if root.exists() else absent(root, "folder")
        raise UserError(f"dataset.root={options.root}: {what}{unpack(root)}")
    if isinstance(options.ignore, int) and options.ignore > IGNORED:
        raise UserError(f"dataset.ignore={options.ignore}: expected a value of a mask, 0 to {IGNORED}")
    notes: list[str] = []
    inner = inner_root(root, SUFFIXES)
    pairs = {split: paired(*both, notes) for split, both in folders(inner, notes).items()}
    faults = noted(pairs, inner, notes)
    known = next((file for file in (root / CLASSES, inner / CLASSES) if file.is_file()), None)
    surveyed = {split: survey(found) for split, found in pairs.items()}
    masks_of = {split: [mask for mask in found.masks if mask] for split, found in pairs.items()}
    names = palettes.names_in(known) if known else None
    numbers, classes = meaning(surveyed, names, options.ignore, masks_of, known, notes)
    palette = colours(masks_of["train"], numbers, len(classes))
    digest = hashlib.sha256(repr((classes, numbers.tolist())).encode())
    parts = {}
    for split, found in pairs.items():
        images = [str(path.relative_to(root)) for path in found.images]
        paths = [None if p is None else str(p.relative_to(root)) for p in found.masks]
        masks = FileMasks(root, paths, classes, palette, numbers)
        own = hashlib.sha256(repr((classes, numbers.tolist())).encode())
        for path, content in zip(found.images, hashes(found.images), strict=True):
            digest.update(os.fsencode(f"{split}/{path.relative_to(root)}/{content}\n"))
        there = [p for p in found.masks if p]
        for path, content in zip(there, hashes(there), strict=True):
            own.update(os.fsencode(f"{split}/{path.relative_to(root)}/{content}\n"))
        masks.fingerprint = own.hexdigest()
        digest.update(own.digest())
        parts[split] = Part(Files(root, images), None, masks=masks)
    return Source(parts, classes, digest.hexdigest(), notes, faults=faults)


def folders(root: Path, notes: list[str]) -> dict[str, tuple[Path, Path]]:
    """{split: (its images, its masks)}: root/train/images, root/images/train or root/images. Raises UserError."""
    if splits := split_folders(root, notes):
        found = {}
        for split, place in splits.items():
            images, masks = called(place, IMAGES), called(place, MASKS)
            if images and masks:
                found[split] = (images, masks)
            elif split == "train":
                raise UserError(lacking(place))
            else:
                notes.append(f"Warning: {place.name} has no folders {IMAGES[0]} and {MASKS[0]} and is left out")
        return found
    images, masks = called(root, IMAGES), called(root, MASKS)
    if not (images and masks):
        raise UserError(lacking(root))
    inside, beside = split_folders(images, notes), split_folders(masks, notes)
    return {split: (inside[split], beside[split]) for split in inside if split in beside} or {"train": (images, masks)}


def called(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in it that has one of these names, the first of them that there is."""
    there = {p.name.lower(): p for p in visible(folder) if p.is_dir()}
    return next((there[name] for name in names if name in there), None)


def lacking(place: Path) -> str:
    there = ", ".join(printable(p.name) for p in visible(place)[:6]) or "nothing"
    return (
        f"{place}: expected the folders {IMAGES[0]} and {MASKS[0]} in it, or train, val and test with both in each; "
        f"it holds {there}"
    )


def paired(images: Path, masks: Path, notes: list[str]) -> Pairs:
    """By their paths without the ending of the file. Raises UserError where nothing goes together."""
    pictures, files = files_below(images, SUFFIXES, notes), files_below(masks, SUFFIXES)
    if not pictures or not files:
        raise UserError(f"{images if not pictures else masks}: no images in there (files ending in .png .jpg .tif ...)")
    if lossy := [p for p in files if p.suffix.lower() not in LOSSLESS]:
        raise UserError(
            f"{lossy[0]}: a mask in a format that changes its values; expected .png, indexed or gray, each value a class"
        )
    mask_of: dict[str, Path] = {}
    for path in files:
        if (other := mask_of.setdefault(key(path, masks), path)) is not path:
            raise UserError(f"{other} and {path.name}: two masks of one image; take one away")
    found, taken = [], set()
    for path in pictures:
        own = key(path, images)
        name = next((own + e for e in ("", *ENDINGS, *map(str.upper, ENDINGS)) if own + e in mask_of), None)
        found.append(None if name is None else mask_of[name])
        taken.add(name)
    if not any(found):
        raise UserError(
            f"{masks}: no mask has the name of an image ({printable(files[0].name)} beside {printable(pictures[0].name)}); "
            f"expected the same name, or with {ENDINGS[0]} after it"
        )
    return Pairs(pictures, found, [path for name, path in mask_of.items() if name not in taken])


def key(path: Path, folder: Path) -> str:
    return nfc(os.fspath(path.relative_to(folder).with_suffix("")))


def noted(pairs: dict[str, Pairs], root: Path, notes: list[str]) -> tuple[str, ...]:
    """What has no counterpart, and masks of other sides than their image: in `notes`, and by file. Raises UserError for those of
    other proportions."""
    bare = [p for found in pairs.values() for p, mask in zip(found.images, found.masks, strict=True) if mask is None]
    alone = [p for found in pairs.values() for p in found.alone]
    if bare:
        notes.append(f"Warning: {len(bare):,} images have no mask and are for pretraining alone: {listed(bare, root)}")
    if alone:
        notes.append(f"Warning: {len(alone):,} masks have no image and are left out: {listed(alone, root)}")
    sizes = [(m, *size) for found in pairs.values() for m, size in zip(found.masks, differing(found), strict=True) if m and size]
    other = [(path, image, mask) for path, image, mask in sizes if abs(image[0] * mask[1] / (image[1] * mask[0]) - 1) > SAME]
    if other:
        shown = "; ".join(f"{p.relative_to(root)} is {m[0]}x{m[1]}, its image {i[0]}x{i[1]}" for p, i, m in other[:SHOWN])
        raise UserError(f"{root}: {len(other):,} masks have other proportions than their image: {shown}; mend or remove them")
    scaled = [path for path, *_ in sizes]
    if scaled:
        notes.append(f"Warning: {len(scaled):,} masks are scaled to the size of their image: {listed(scaled, root)}")
    what = {"has no mask": bare, "has no image; left out": alone, "is scaled to its image": scaled}
    return tuple(f"{readable(str(path.relative_to(root)))}: {told}" for told, paths in what.items() for path in paths)


def listed(paths: list[Path], root: Path) -> str:
    more = ", ... (all of them: faults.txt)" if len(paths) > SHOWN else ""
    return ", ".join(readable(str(path.relative_to(root))) for path in paths[:SHOWN]) + more


Size = tuple[int, int]


def differing(found: Pairs) -> list[tuple[Size, Size] | None]:
    """Of each image with a mask of another size: both sizes, as the image is shown. None of what cannot be opened."""

    def look(both: tuple[Path, Path | None]) -> tuple[Size, Size] | None:
        if both[1] is None:
            return None
        try:
            with Image.open(both[0]) as image, Image.open(both[1]) as mask:
                return None if shown(image) == mask.size else (shown(image), mask.size)
        except Exception:  # of many decoders: the one that reads it for good says so
            return None

    with ThreadPoolExecutor() as pool:
        return list(pool.map(look, zip(found.images, found.masks, strict=True)))


def shown(image: Image.Image) -> Size:
    """Width and height as its EXIF says that it was taken."""
    return image.size[::-1] if image.getexif().get(ORIENTATION) in TURNED else image.size


def values(path: Path) -> np.ndarray:
    """The values in a mask, uint8 [H, W]. Raises Unusable."""
    try:
        with Image.open(path) as image:
            array, mode = np.asarray(image.getchannel(0) if image.mode in ("LA", "PA", "La") else image), image.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unusable(f"cannot be decoded ({error})") from None
    if mode in ("RGB", "RGBA"):
        if (array[..., :1] != array[..., :3]).any():
            raise Unusable("has colours, not classes; expected an indexed or gray picture, each value of which is a class")
        array = array[..., 0]
    if array.ndim != 2 or mode == "F" or array.dtype.kind not in "buil":
        raise Unusable(f"is of the kind {mode}; expected an indexed or gray picture, each value of which is a class")
    if array.size and (array.min() < 0 or array.max() > IGNORED):
        raise Unusable(
            f"holds the value {int(array.max() if array.max() > IGNORED else array.min())}; classes are 0 to {palettes.MOST - 1} "
            f"and {IGNORED} is ignored (are these numbers of objects?)"
        )
    return array.astype(np.uint8)


def survey(found: Pairs) -> np.ndarray:
    """Which values the masks of a split have, bool [masks, 256]. Raises UserError with those that cannot be used."""

    def look(path: Path) -> np.ndarray | str:
        try:
            return np.bincount(values(path).ravel(), minlength=256) > 0
        except Unusable as error:
            return f"{path}: {error}"

    with ThreadPoolExecutor() as pool:
        each = list(pool.map(look, [mask for mask in found.masks if mask]))
    if bad := [line for line in each if isinstance(line, str)]:
        more = [f"... and {len(bad) - SHOWN:,} masks more that cannot be used"] if len(bad) > SHOWN else []
        raise UserError(*bad[:SHOWN], *more)
    return np.array(each)


def meaning(
    surveyed: dict[str, np.ndarray],
    names: list[str] | None,
    ignore: Any,
    masks_of: dict[str, list[Path]],
    file: Path | None,
    notes: list[str],
) -> tuple[np.ndarray, list[str]]:
    """(of each value its class or IGNORED, uint8 [256]; names of the classes). Raises UserError for values that are none."""
    there = set(np.flatnonzero(np.concatenate(list(surveyed.values())).any(0)).tolist())
    skipped = skip(there, names) if ignore == "auto" else ignore
    if names is None:
        learned = sorted(set(np.flatnonzero(surveyed["train"].any(0)).tolist()) - {skipped})
        names, known = [str(value) for value in learned], learned
        notes.append(f"there is no {CLASSES} (a name a line): classes are the values in the masks, {', '.join(names[:9])}")
        why = "is in no training mask"
    else:
        known, why = list(range(len(names))), f"is beyond the {len(names)} classes of {file}"
    for split, found in surveyed.items():
        wrong = found.copy()
        wrong[:, [*known, *([] if skipped is None else [skipped])]] = False
        if wrong.any():
            rows = np.flatnonzero(wrong.any(1))
            value = int(np.flatnonzero(wrong[rows[0]])[0])
            raise UserError(
                f"{masks_of[split][rows[0]]}: the value {value} {why} ({len(rows):,} masks of the {split} split have such); "
                f"dataset.ignore={value} leaves such pixels out"
            )
    if skipped is not None and skipped in there:
        notes.append(f"pixels of the value {skipped} are in no class and count nowhere (dataset.ignore)")
    numbers = np.full(256, IGNORED, dtype=np.uint8)
    numbers[[v for v in known if v != skipped]] = [place for place, v in enumerate(known) if v != skipped]
    return numbers, names


def skip(there: set[int], names: list[str] | None) -> int | None:
    """Which of the values in masks is none of a class, where that is not said: 255, unless it is one of a few gray levels that
    are drawn to be seen (0 and 255; 0, 128 and 255)."""
    others = sorted(there - {IGNORED, 0})
    levels = not others or (len(others) + 2 <= FEW and min(np.diff([0, *others, IGNORED])) >= DRAWN)
    return None if names is None and IGNORED in there and levels else IGNORED


def colours(masks: Iterable[Path], numbers: np.ndarray, count: int) -> list[list[int]]:
    """Of each class: those of the first mask that has a palette, else the usual ones."""
    for path in masks:
        with Image.open(path) as image:
            if image.mode == "P" and (palette := image.getpalette("RGB")):
                known = np.array(palette, dtype=int).reshape(-1, 3)
                own = [known[value].tolist() if value < len(known) else None for value in np.flatnonzero(numbers != IGNORED)]
                gray = all(c is not None and len(set(c)) == 1 and max(c) < 2 * count for c in own)
                if None not in own and not gray and len(own) == count:
                    return own  # type: ignore[return-value]
        break
    return palettes.usual(count)
