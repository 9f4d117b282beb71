"""The class of each pixel by model.onnx: python run.py PICTURE... writes PICTURE_mask.png, indexed and of the picture's size, to
where it is started, and prints which share of the picture each class has.

Needs numpy, pillow and onnxruntime. recipe.json says how pictures become inputs.
"""

# mypy: ignore-errors
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

here = Path(__file__).parent
recipe = json.loads((here / "recipe.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"))
size = recipe["side"]


def opened(path):
    picture = ImageOps.exif_transpose(Image.open(path))
    if "transparency" in picture.info or "A" in picture.getbands():
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("L" if recipe["channels"] == 1 else "RGB")


def square_mask(picture):
    """The classes of a square picture, uint8 [side, side]."""
    values = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    values = np.asarray(values, np.float32).reshape(size, size, -1) / 255
    values = (values - np.float32(recipe["mean"])) / np.float32(recipe["std"])
    [logits] = session.run(None, {"inputs": values.transpose(2, 0, 1)[None]})[0]
    mask = Image.fromarray(logits.argmax(0).astype(np.uint8))
    return np.asarray(mask.resize(picture.size, Image.Resampling.NEAREST))


def mask_of(picture):
    """Of the fewest squares that cover it, evenly spaced; each pixel is taken from the nearest: uint8 [H, W]."""
    side, length = min(picture.size), max(picture.size)
    wide = picture.width > picture.height
    firsts = np.linspace(0, length - side, -(-length // side)).round().astype(int).tolist()
    edges = [0, *((a + side + b) // 2 for a, b in pairwise(firsts)), length]
    whole = np.zeros((picture.height, picture.width), np.uint8)
    for first, (start, stop) in zip(firsts, pairwise(edges), strict=True):
        box = (first, 0, first + side, side) if wide else (0, first, side, first + side)
        square, part = square_mask(picture.crop(box)), slice(start - first, stop - first)
        if wide:
            whole[:, start:stop] = square[:, part]
        else:
            whole[start:stop] = square[part]
    return whole


if __name__ == "__main__":
    for name in sys.argv[1:]:
        mask = mask_of(opened(name))
        shares = np.bincount(mask.ravel(), minlength=len(recipe["classes"])) / mask.size
        image = Image.fromarray(mask).convert("P")
        image.putpalette([channel for colour in recipe["palette"] for channel in colour])
        image.save(f"{Path(name).stem}_mask.png")
        order = np.argsort(-shares, kind="stable")
        print(name, *(f"{recipe['classes'][i]}={shares[i]:.4f}" for i in order if shares[i]), sep="\t")
