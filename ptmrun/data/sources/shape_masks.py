"""Scenes of shapes with exact masks, drawn here: which shape each pixel is of. No download."""

import hashlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ptmrun.data.sources import Part, Source, palettes
from ptmrun.data.sources.shapes import shape

SIDE, FINE = 48, 3  # pixels a side, and how many times as fine they are drawn
CLASSES = ["background", "circle", "square", "triangle", "star"]
MOST = 3  # shapes of a scene
RADIUS = (0.15, 0.26)  # as a share of the side
NOISE = 8  # deviation of the grain of all surfaces, in 255
APART = 110  # by which the colour of a shape differs from that of the ground, at least


class DrawnMasks:
    """Masks in memory, uint8 [N, H, W]."""

    classes = CLASSES

    def __init__(self, masks: np.ndarray):
        self.masks, self.palette = masks, palettes.usual(len(CLASSES))
        self.fingerprint = hashlib.sha256(masks.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.masks)

    def has(self, index: int) -> bool:
        return True

    def mask(self, index: int) -> np.ndarray | None:
        return self.masks[index]


def read(options: Any) -> Source:
    """`options.drawings` scenes. Colours tell nothing of the classes."""
    rng = np.random.default_rng(options.drawing_seed)
    drawn = [scene(rng) for _ in range(options.drawings)]
    images, masks = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    digest = hashlib.sha256(images.tobytes() + masks.tobytes()).hexdigest()
    return Source({"train": Part(images, None, masks=DrawnMasks(masks))}, CLASSES, digest, [])


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [SIDE, SIDE, 3], classes uint8 [SIDE, SIDE]): one to MOST shapes on a ground that goes from a colour to another."""
    side = SIDE * FINE
    ramp = np.linspace(0, 1, side)[:, None, None] * np.ones((1, side, 1))
    ground = rng.integers(200, 256) + rng.integers(-8, 9, 3)
    picture = ground + (ramp - 0.5) * rng.integers(-30, 31, 3)
    if rng.random() < 0.5:
        picture = picture.transpose(1, 0, 2)
    classes = np.zeros((side, side), dtype=np.uint8)
    for _ in range(rng.integers(1, MOST + 1)):
        number, radius = int(rng.integers(1, len(CLASSES))), rng.uniform(*RADIUS)
        centre = rng.uniform(radius, 1 - radius, 2)
        canvas = Image.new("L", (side, side))
        shape(ImageDraw.Draw(canvas), CLASSES[number], centre * side, radius * side, rng.uniform(-3, 3), (1,), (0,))
        inside = np.asarray(canvas) == 1
        colours = rng.integers(0, 256, (64, 3))
        colour = next(c for c in (*colours, 255 - ground) if np.abs(c - ground).max() >= APART)
        picture[inside], classes[inside] = colour, number
    picture = picture.reshape(SIDE, FINE, SIDE, FINE, 3).mean((1, 3)) + rng.normal(0, NOISE, (SIDE, SIDE, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), classes[FINE // 2 :: FINE, FINE // 2 :: FINE].copy()
