"""Pictures of any size as what is segmented, and back: a long one is several squares, each pixel is taken from the nearest."""

import io
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptmrun.data.images import decode
from ptmrun.data.images.split import Split
from ptmrun.data.modality import Unreadable
from ptmrun.data.sources import IGNORED, palettes
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.segmentation.split import percent

OPAQUE = 0.45  # of the colours over an image
Box = tuple[int, int, int, int]  # left, upper, right, lower


class Opened(NamedTuple):
    """A picture, upright, in colours of 8 bits, and as squares of the model's size, uint8 [n, C, S, S], that lie at `boxes`."""

    picture: Image.Image
    squares: Tensor
    boxes: list[Box]


@dataclass(kw_only=True)
class Squares(Split):
    """The squares of pictures. opened: the pictures; palette: a colour of each class."""

    opened: list[Opened]
    palette: list[list[int]]


def boxes(width: int, height: int) -> list[Box]:
    """The fewest squares that cover a picture, from the upper left to the lower right, evenly spaced."""
    side, length = min(width, height), max(width, height)
    count = -(-length // side)
    firsts = np.linspace(0, length - side, count).round().astype(int).tolist()
    return [(f, 0, f + side, side) if width > height else (0, f, side, f + side) for f in firsts]


def opened(raw: list[Any], setup: ProblemSetup) -> list[Opened | Unreadable]:
    """Paths, pictures, arrays -> with their squares."""
    processor = setup.processor
    size, channels = processor.spec

    def look(picture: Image.Image) -> Opened:
        plain, places = decode.opaque(picture, processor.scales), boxes(*picture.size)
        squares = [decode.tensor(plain.crop(box), size, channels) for box in places]
        return Opened(plain.convert("RGB"), torch.stack(squares), places)

    return processor.each(raw, look)


def unlabelled(raw: list[Opened], setup: ProblemSetup) -> Squares:
    pixels = torch.cat([x.squares for x in raw])
    rows, palette = torch.arange(len(pixels)), setup.facts.get("palette") or palettes.usual(len(setup.classes))
    return Squares(pixels, None, rows, None, opened=raw, palette=palette)


def answer_rows(predictions: dict[str, Tensor], split: Squares, classes: list[str], top: int) -> list[dict[str, Any]]:
    """Of each picture the classes that fill most of it, how sure the model is, the share of each, and pictures: the mask, indexed
    with the palette of the training masks, and an overlay; both of the picture's own size."""
    rows, start = [], 0
    for one in split.opened:
        stop = start + len(one.boxes)
        mask = joined(predictions["masks"][start:stop], one)
        shares = np.bincount(mask.ravel(), minlength=len(classes))[: len(classes)] / mask.size
        order = [c for c in np.argsort(-shares, kind="stable").tolist() if shares[c] > 0]
        rows.append(
            {
                "prediction": [f"{classes[c]} {percent(shares[c])}" for c in order[:top]],
                "confidence": float(predictions["confidence"][start:stop].mean()),
                "shares": {classes[c]: float(shares[c]) for c in order},
                "pictures": {"mask": indexed(mask, split.palette), "overlay": overlaid(one.picture, mask, split.palette)},
            }
        )
        start = stop
    return rows


def drawn(raw: Any, row: dict[str, Any]) -> dict[str, bytes]:
    """The mask and the overlay of a row, as PNG."""
    made = {}
    for name, picture in row["pictures"].items():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        made[f"_{name}"] = buffer.getvalue()
    return made


def joined(masks: Tensor, one: Opened) -> np.ndarray:
    """The masks of the squares [n, S, S] as that of the picture, uint8 [H, W]."""
    width, height = one.picture.size
    whole = np.zeros((height, width), dtype=np.uint8)
    wide, side = width > height, min(width, height)
    edges = [0, *((a[2 if wide else 3] + b[0 if wide else 1]) // 2 for a, b in zip(one.boxes, one.boxes[1:], strict=False))]
    edges.append(max(width, height))
    for mask, (left, upper, _, _), first, last in zip(masks, one.boxes, edges, edges[1:], strict=False):
        square = np.asarray(Image.fromarray(mask.numpy()).resize((side, side), Image.Resampling.NEAREST))
        if wide:
            whole[:, first:last] = square[:, first - left : last - left]
        else:
            whole[first:last] = square[first - upper : last - upper]
    return whole


def indexed(mask: np.ndarray, palette: list[list[int]]) -> Image.Image:
    """A mask as an indexed picture; what is IGNORED is white."""
    image = Image.fromarray(mask).convert("P")
    image.putpalette(bytes(chain(*palette, *[[0, 0, 0]] * (IGNORED - len(palette)), palettes.WHITE)))
    return image


def overlaid(picture: Image.Image, mask: np.ndarray, palette: list[list[int]]) -> Image.Image:
    return Image.blend(picture.convert("RGB"), indexed(mask, palette).convert("RGB"), OPAQUE)
