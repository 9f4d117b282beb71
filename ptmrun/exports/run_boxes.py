"""Boxes by model.onnx: python run.py PICTURE... One line a box: picture, class, score, left, top, right, bottom in its pixels.

Needs numpy, pillow and onnxruntime. recipe.json says how pictures become inputs, and outputs boxes.
"""

# mypy: ignore-errors
import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SHOWN = 0.3  # the least score of what is printed
INSIDE = 0.7  # share of a box that a square cuts, within another box of its class, at which it is part of that
EDGE = 1.5  # pixels of the model's input, nearer to its border than which a box is cut
here = Path(__file__).parent
recipe = json.loads((here / "recipe.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"))
size, classes = recipe["side"], recipe["classes"]


def squares(width, height):
    """(left, top, side) of the whole picture, or where it is large of squares that overlap."""
    tile = recipe["tile"]
    if tile is None or max(width, height) <= 1.15 * tile:
        return [(0, 0, max(width, height))]
    step = (1 - recipe["overlap"]) * tile
    counts = [1 + max(0, math.ceil((length - tile) / step)) for length in (width, height)]
    lefts, tops = (
        [round(i * (length - tile) / (n - 1)) for i in range(n)] if n > 1 else [0]
        for length, n in zip((width, height), counts, strict=True)
    )
    return [(left, top, tile) for top in tops for left in lefts]


def pixels(picture, left, top, side):
    """A square, black beyond the picture, at the side of the model and standardised: [1, channels, side, side]."""
    part = picture.crop((left, top, left + side, top + side))
    if "transparency" in part.info or "A" in part.getbands():
        part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part.convert("RGBA"))
    part = ImageOps.fit(part.convert("L" if recipe["channels"] == 1 else "RGB"), (size, size), Image.Resampling.BILINEAR)
    values = np.asarray(part, np.float32).reshape(size, size, -1) / 255
    return ((values - np.float32(recipe["mean"])) / np.float32(recipe["std"])).transpose(2, 0, 1)[None]


def overlaps(boxes):
    """(areas [n], shared areas [n, n])"""
    both = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    return (boxes[:, 2:] - boxes[:, :2]).prod(1), both.clip(0).prod(2)


def without_twice(boxes, scores, kinds):
    """Which are left, the surest first, when of those of a class that overlap much only the surest stays."""
    areas, shared = overlaps(boxes)
    twice = (shared > recipe["twice"] * (areas[:, None] + areas - shared)) & (kinds[:, None] == kinds)
    left = []
    for i in np.argsort(-scores, kind="stable"):
        if not twice[i, left].any():
            left.append(i)
    return np.array(left, int)


def found(picture, square):
    """(boxes [n, 4] in pixels of the picture, scores, classes, which of them the square cuts) in a square."""
    [places] = session.run(None, {"inputs": pixels(picture, *square)})[0]
    rows, first = [], 0
    for count in recipe["places"]:  # the surest of each level of the pyramid
        scores = places[first : first + count, : len(classes)].ravel()
        sure = np.argsort(-scores, kind="stable")[: recipe["candidates"]]
        sure = sure[scores[sure] > recipe["unsure"]]
        rows += zip(places[first + sure // len(classes), len(classes) :], scores[sure], sure % len(classes), strict=True)
        first += count
    boxes, scores, kinds = (np.array([row[i] for row in rows]) for i in range(3))
    boxes = size * boxes.reshape(-1, 4).astype(np.float32)
    best = without_twice(boxes, scores, kinds)[: recipe["most"]]
    boxes, (left, top, side) = boxes[best], square
    near = np.concatenate([boxes[:, :2] < EDGE, boxes[:, 2:] > size - EDGE], 1)
    inner = [left > 0, top > 0, left + side < picture.width, top + side < picture.height]
    inside = np.clip(boxes * (side / size) + [left, top, left, top], 0, [*picture.size, *picture.size])
    return inside, scores[best], kinds[best], (near & inner).any(1)


def answers(path):
    """(boxes, scores, classes) of a picture, the surest first; of what its squares show twice, or in parts, one is left."""
    picture = ImageOps.exif_transpose(Image.open(path))
    each = [found(picture, square) for square in squares(*picture.size)]
    boxes, scores, kinds, cut = (np.concatenate(x) for x in zip(*each, strict=True))
    if len(each) > 1:
        areas, shared = overlaps(boxes)
        larger = (areas > areas[:, None]) & (kinds[:, None] == kinds) & ~cut
        whole = ~(cut & (larger & (shared > INSIDE * areas[:, None])).any(1))
        boxes, scores, kinds = boxes[whole], scores[whole], kinds[whole]
        best = without_twice(boxes, scores, kinds)
        boxes, scores, kinds = boxes[best], scores[best], kinds[best]
    return boxes, scores, kinds


if __name__ == "__main__":
    for name in sys.argv[1:]:
        for box, score, kind in zip(*answers(name), strict=True):
            if score >= SHOWN:
                print(name, classes[kind], f"{score:.4f}", *(f"{x:.2f}" for x in box), sep="\t")
