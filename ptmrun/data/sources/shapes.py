"""Pictures of shapes with captions, drawn here: which shape, in which colour and size, how many and where. No download."""

import hashlib
import itertools
import json
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ptmrun.data.sources import PairSource, Part, Source

SIDE, FINE = 32, 4  # pixels a side, and how many times as fine they are drawn
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 80, 200),
    "yellow": (235, 200, 30),
    "purple": (140, 60, 180),
    "orange": (255, 127, 14),
    "brown": (115, 70, 45),
    "black": (25, 25, 25),
}
PLACES = {"left": (0.28, 0.5), "right": (0.72, 0.5), "top": (0.5, 0.28), "bottom": (0.5, 0.72), "centre": (0.5, 0.5)}
SIZES = {"small": 0.085, "large": 0.14}  # radius as a share of the side
NUMBERS = {"one": 1, "two": 2, "three": 3}
WORDINGS = (  # a caption is one of these, in words of which each belongs to one attribute alone
    "{number} {size} {colour} {shape} {at} {place}",
    "a picture of {number} {size} {colour} {shape} {at} {place}",
    "{at} {place}, {number} {colour} {shape}, {size}",
    "{colour} {shape}: {number}, {size}, {at} {place}",
    "{size} {shape} in {colour}, {number}, {at} {place}",
)
GROUND = (240, 240, 240)
CAPTIONS = 2  # of an image, two of the wordings


class Drawing(NamedTuple):
    """What a picture shows: a value of each attribute."""

    shape: str
    colour: str
    place: str
    number: str
    size: str


def read(options: Any) -> PairSource:
    """`options.drawings` pictures of each combination of attributes, labelled by the attribute `options.label`. Pictures of one
    combination stay together, so that others are held out."""
    rng = np.random.default_rng(options.drawing_seed)
    images, captions, drawings = [], [], []
    for drawing in combinations():
        for _ in range(options.drawings):
            images.append(draw(drawing, rng))
            captions.append([worded(drawing, WORDINGS[i]) for i in rng.permutation(len(WORDINGS))[:CAPTIONS]])
            drawings.append(drawing)
    values = list(dict.fromkeys(getattr(drawing, options.label) for drawing in drawings))
    labels = np.array([values.index(getattr(drawing, options.label)) for drawing in drawings], dtype=np.int64)
    pixels = np.stack(images)
    digest = hashlib.sha256(pixels.tobytes() + json.dumps([captions, labels.tolist()]).encode())
    source = Source({"train": Part(pixels, labels)}, values, digest.hexdigest(), [])
    return PairSource(source, {"train": captions}, {"train": [" ".join(drawing) for drawing in drawings]})


def combinations() -> list[Drawing]:
    return [Drawing(*values) for values in itertools.product(SHAPES, COLOURS, PLACES, NUMBERS, SIZES)]


def worded(drawing: Drawing, wording: str) -> str:
    """A caption: "two small red circles at the top"."""
    shape = drawing.shape if drawing.number == "one" else "crosses" if drawing.shape == "cross" else f"{drawing.shape}s"
    at = "in the" if drawing.place == "centre" else "on the" if drawing.place in ("left", "right") else "at the"
    return wording.format(**{**drawing._asdict(), "shape": shape}, at=at)


def draw(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """uint8 [SIDE, SIDE, 3]: the shapes side by side around the place, on a light ground; place, size, turn and shade vary."""
    side = SIDE * FINE
    canvas = Image.new("RGB", (side, side), GROUND)
    pen = ImageDraw.Draw(canvas)
    radius = SIZES[drawing.size] * rng.uniform(0.9, 1.1)
    x, y = np.array(PLACES[drawing.place]) + rng.uniform(-0.04, 0.04, 2)
    shade = np.clip(np.array(COLOURS[drawing.colour]) + rng.integers(-12, 13), 0, 255)
    turn = rng.uniform(-0.25, 0.25)
    for dx, dy in spots(NUMBERS[drawing.number], 1.15 * radius, drawing.place, rng):
        centre = np.clip(np.array([x + dx, y + dy]), radius, 1 - radius) * side
        shape(pen, drawing.shape, centre, radius * side, turn, tuple(int(c) for c in shade), GROUND)
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))


def spots(count: int, reach: float, place: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Where so many shapes stand about their place: in a row along the edge that it is at."""
    if count == 1:
        return [(0.0, 0.0)]
    tall = place in ("left", "right") or (place == "centre" and rng.random() < 0.5)
    offsets = [reach * (2 * i - count + 1) for i in range(count)]
    return [(0.0, offset) if tall else (offset, 0.0) for offset in offsets]


def shape(pen: Any, name: str, centre: np.ndarray, radius: float, turn: float, fill: tuple, ground: tuple) -> None:
    """Draws one shape of about this radius in pixels."""
    (x, y), r = centre, radius

    def corners(angles: list[float], radii: list[float]) -> list[tuple[float, float]]:
        return [(x + q * math.sin(a + turn), y - q * math.cos(a + turn)) for a, q in zip(angles, radii, strict=True)]

    if name in ("circle", "ring"):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)
        if name == "ring":
            pen.ellipse([x - 0.55 * r, y - 0.55 * r, x + 0.55 * r, y + 0.55 * r], fill=ground)
    elif name == "cross":
        for angle in (0.0, math.pi / 2):
            wide = 0.33
            bar = [angle + sign * wide + half for half in (0.0, math.pi) for sign in (-1, 1)]
            pen.polygon(corners(bar, [1.05 * r] * 4), fill=fill)
    elif name == "star":
        pen.polygon(corners([math.pi * i / 5 for i in range(10)], [1.2 * r, 0.5 * r] * 5), fill=fill)
    else:
        count = {"square": 4, "triangle": 3}[name]
        start = math.pi / 4 if name == "square" else 0.0
        pen.polygon(corners([start + 2 * math.pi * i / count for i in range(count)], [1.2 * r] * count), fill=fill)
