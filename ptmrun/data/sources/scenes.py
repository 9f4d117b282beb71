"""Pictures of several shapes with exact boxes, drawn here on grounds of changing brightness. No download."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ptmrun.data.sources import Part, Scene, Scenes, Source, Window
from ptmrun.data.sources.shapes import COLOURS, SHAPES, shape

SIDE, FINE = 128, 2  # pixels a side, and how many times as fine they are drawn
MOST = 6  # shapes of a picture
SIZES = (0.07, 0.2)  # radius as a share of the side
APART = 0.1  # of the smaller of two boxes, that the other may cover
TRIES = 20  # places that are tried for a shape


def read(options: Any) -> Source:
    """`options.drawings` pictures; classes are the shapes, whatever their colour."""
    rng = np.random.default_rng(options.drawing_seed)
    images, scenes = [], []
    for i in range(options.drawings):
        image, corners, classes = drawn(rng)
        images.append(image)
        scenes.append(Scene(f"drawing {i}", SIDE, SIDE, corners, classes, np.zeros(len(classes), dtype=bool)))
    pixels = np.stack(images)
    digest = hashlib.sha256(pixels.tobytes())
    for scene in scenes:
        digest.update(scene.corners.tobytes() + scene.classes.tobytes())
    windows = [Window(i, 0, 0, SIDE) for i in range(len(scenes))]
    shown = Scenes(scenes, windows, list(range(len(SHAPES))))
    count = sum(len(scene.classes) for scene in scenes)
    notes = [f"{len(scenes):,} drawings of {count:,} shapes"]
    return Source({"train": Part(pixels, None, shown=shown)}, list(SHAPES), digest.hexdigest(), notes)


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(uint8 [SIDE, SIDE, 3], corners of the boxes float32 [n, 4], classes int64 [n])"""
    side = SIDE * FINE
    canvas, mask = ground(rng, side), Image.new("L", (side, side))
    pen, marker = ImageDraw.Draw(canvas), ImageDraw.Draw(mask)
    corners: list[np.ndarray] = []
    classes = []
    shades = list(COLOURS.values())
    for _ in range(rng.integers(1, MOST + 1)):
        number, radius = int(rng.integers(len(SHAPES))), rng.uniform(*SIZES) * side
        fill = np.clip(np.array(shades[rng.integers(len(shades))]) + rng.integers(-18, 19, 3), 0, 255)
        turn = rng.uniform(-0.5, 0.5)
        for _ in range(TRIES):
            centre = rng.uniform(1.25 * radius, side - 1.25 * radius, 2)
            marker.rectangle([0, 0, side, side], fill=0)
            shape(marker, SHAPES[number], centre, radius, turn, 255, 255)  # type: ignore[arg-type]
            box = np.array(mask.getbbox(), dtype=np.float32) / FINE
            if all(covered(box, other) <= APART for other in corners):
                under = tuple(np.asarray(canvas)[int(centre[1]), int(centre[0])].tolist())
                shape(pen, SHAPES[number], centre, radius, turn, tuple(int(c) for c in fill), under)
                corners.append(box)
                classes.append(number)
                break
    image = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))
    return image, np.stack(corners), np.array(classes, dtype=np.int64)


def ground(rng: np.random.Generator, side: int) -> Image.Image:
    """A light ground with soft spots, and fine noise."""
    spots = Image.fromarray(rng.integers(150, 250, (5, 5, 3)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 8, (side, side, 1))
    return Image.fromarray(np.clip(np.asarray(spots) + noise, 0, 255).astype(np.uint8))


def covered(a: np.ndarray, b: np.ndarray) -> float:
    """What two boxes share, of the smaller one."""
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if width <= 0 or height <= 0:
        return 0.0
    return float(width * height / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])))
