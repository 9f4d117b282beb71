"""Windows of pictures: the whole of each, or overlapping squares of large ones; and the side that they are scaled to."""

import hashlib
import json
import math
from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.images import decode
from ptmrun.data.sources import Part, Scene, Scenes, Source, Window
from ptmrun.data.sources.boxes.annotated import Annotated, Found
from ptmrun.data.sources.folders import readable
from ptmrun.errors import UserError
from ptmrun.storage.content import hashes, number

UNIT = 32  # sides are multiples of it, as the coarsest level of a pyramid has such places
LEAST, MOST, USUAL = 128, 320, 256  # pixels a side that pictures are scaled to; USUAL: of tiles
WANTED = 16  # pixels that a small box is to have a side: two places of the finest level
SMALL = 0.2  # the share of the boxes that are smaller than a small one
LARGE = 0.95  # tiles hold so many of the boxes at least
TURNS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}  # where pictures say how they were taken
SLACK = 1.15  # times the tile, up to which a picture is not cut


class Windows:
    """The windows of pictures, decoded one by one; a picture is decoded once for windows that follow each other."""

    def __init__(self, pictures: list[Annotated], windows: list[Window]):
        self.pictures, self.windows = pictures, windows
        self.last: tuple[int, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "last": None}

    def picture(self, index: int) -> Image.Image:
        window = self.windows[index]
        if self.last is None or self.last[0] != window.scene:
            self.last = None  # before the next is decoded: one is in memory at a time
            self.last = window.scene, whole(self.pictures[window.scene])
        return cut(self.last[1], window)

    def label_of(self, index: int) -> str:
        window = self.windows[index]
        name = readable(self.pictures[window.scene].name)
        alone = window.left <= 0 and window.top <= 0 and window.side >= max(self.pictures[window.scene].size or (0, 0))
        return name if alone else f"{name} at {window.left},{window.top}"


def whole(picture: Annotated) -> Image.Image:
    """The decoded picture. Raises decode.Broken, or as `Pictures.picture` does."""
    if picture.raw:
        with Image.open(picture.path) as image:
            return image.copy()
    return decode.picture(One(picture), 0)


class One:
    """A file as the pictures of a source."""

    def __init__(self, picture: Annotated):
        self.shown = picture

    def __len__(self) -> int:
        return 1

    def picture(self, index: int) -> Image.Image:
        return Image.open(self.shown.path)

    def label_of(self, index: int) -> str:
        return self.shown.name


def cut(image: Image.Image, window: Window) -> Image.Image:
    """A window of a picture, black where it reaches beyond."""
    part = image.crop((window.left, window.top, window.left + window.side, window.top + window.side))
    part.info = {name: value for name, value in image.info.items() if name not in TURNS}  # it is upright already
    return part


def windows_of(scene: int, width: int, height: int, tile: int | None, overlap: float) -> list[Window]:
    """The windows of a picture: the whole of it, or where it is larger than `tile` squares of that side, neighbours sharing at
    least `overlap` of it."""
    if tile is None or max(width, height) <= SLACK * tile:
        return [Window(scene, 0, 0, max(width, height))]
    step = (1 - overlap) * tile

    def starts(length: int) -> list[int]:
        count = 1 + max(0, math.ceil((length - tile) / step))
        return [round(i * (length - tile) / (count - 1)) for i in range(count)] if count > 1 else [0]

    return [Window(scene, left, top, tile) for top in starts(height) for left in starts(width)]


def layout(found: Found, options: Any) -> tuple[int | None, int]:
    """(side of the tiles in pixels of the pictures or None, side that windows are scaled to), by the boxes of the training
    pictures where it is auto; says so."""
    pictures = found.parts["train"]
    corners = np.array([b.corners for p in pictures for b in p.boxes if not b.ignored]).reshape(-1, 4)
    sides = (corners[:, 2:] - corners[:, :2]) if len(corners) else np.full((1, 2), float(WANTED))
    small, large = np.quantile(np.sqrt(sides.prod(1)), SMALL), np.quantile(sides.max(1), LARGE)
    scale = WANTED / small
    longest = float(np.quantile([max(p.size or (1, 1)) for p in pictures], LARGE))
    wanted = scale * longest
    told = f"a fifth of the boxes are smaller than {small:.0f} pixels"
    tile = options.tile
    if tile == "auto":
        tile = None
        if wanted > 1.5 * MOST:
            tile = int(max(math.ceil(USUAL / scale / UNIT) * UNIT, math.ceil(1.5 * large / UNIT) * UNIT))
            if longest <= SLACK * tile:
                tile = None
            else:
                found.notes.append(f"dataset.tile={tile}: {told} of images up to {longest:.0f}: cut into squares of this side")
    side = rounded(scale * (tile or longest))
    if options.image_size == "auto":
        found.notes.append(f"dataset.image_size={side}: {told}, and become {small * side / (tile or longest):.0f}")
    return tile, side


def rounded(side: float) -> int:
    return int(min(MOST, max(LEAST, UNIT * round(side / UNIT))))


def source_of(found: Found, options: Any) -> Source:
    """The windows of all pictures as a source."""
    if not found.parts.get("train"):
        raise UserError(f"dataset.root={options.root}: the training split has no image with boxes")
    tile, side = layout(found, options)
    digest = hashlib.sha256(json.dumps([found.categories, found.numbers, tile, options.overlap if tile else None]).encode())
    parts: dict[str, Part] = {}
    for name, pictures in found.parts.items():
        if not pictures:
            continue
        contents = hashes(picture.path for picture in pictures)
        windows, scenes = [], []
        for i, picture in enumerate(pictures):
            scenes.append(scene_of(picture, found.categories))
            windows += windows_of(i, scenes[i].width, scenes[i].height, tile, options.overlap)
            written = [scenes[i].corners.tolist(), scenes[i].classes.tolist(), scenes[i].ignored.tolist(), picture.raw]
            digest.update(f"{name}/{picture.name}/{contents[i]}/{json.dumps(written)}\n".encode("utf-8", "surrogateescape"))
        together = np.array([number(contents[window.scene].encode()) for window in windows], dtype=np.int64)
        shown = Scenes(scenes, windows, found.numbers, tile, options.overlap)
        parts[name] = Part(Windows(pictures, windows), None, together=together, shown=shown)
        if tile:
            found.notes.append(f"{name}: {len(pictures):,} images are cut into {len(windows):,} squares; they are split by image")
    return Source(parts, found.categories, digest.hexdigest(), found.notes, side=side, faults=tuple(found.faults))


def scene_of(picture: Annotated, categories: list[str]) -> Scene:
    assert picture.size is not None
    corners = np.array([box.corners for box in picture.boxes], dtype=np.float32).reshape(-1, 4)
    classes = np.array([categories.index(box.category) for box in picture.boxes], dtype=np.int64)
    ignored = np.array([box.ignored for box in picture.boxes], dtype=bool)
    return Scene(readable(picture.name), *picture.size, corners, classes, ignored)
