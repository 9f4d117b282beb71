"""What is black and what is white in gray pictures of more than 8 bits: one scale for a whole data set.

Pictures of whole numbers (16 bits, 12 of 16, int32) and of decimal numbers have a scale each, by kind: {"whole": (black, white)}.
"""

import math
from typing import Any

import numpy as np
from PIL import Image

Range = tuple[float, float]
Ranges = dict[str, Range]  # by kind

USUAL = {"whole": (255, 1023, 4095, 16383, 65535), "decimal": (1, 255, 65535)}  # white, where black is 0
DEFAULT: Ranges = {"whole": (0, 65535), "decimal": (0, 1)}  # of a kind that no picture of a survey has
DARK = 64  # of the 256 levels: colours of 16 bits whose upper 8 have no more look as if they had fewer bits
FEW = 16  # of the 256 levels: decimal numbers that fill fewer of a usual scale have their own
SLACK = 1e-3  # of a level: 8 bits divided by 255 come back as they were


def kind(image: Image.Image) -> str | None:
    """None: of 8 bits a channel."""
    if image.mode == "F":
        return "decimal"
    return "whole" if image.mode == "I" or image.mode.startswith("I;16") else None


def values(image: Image.Image) -> np.ndarray:
    """float64 [H, W]; what is no finite number is 0."""
    array = np.asarray(image)
    if image.info.get("unsigned"):
        array = array.view(np.uint32)
    return np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def surveyed(image: Image.Image) -> Ranges:
    """Lowest and highest value of a picture; {} of one of 8 bits. Of the upper 8 of 16 bits a colour, by the name "upper"."""
    name = kind(image)
    if name is None:
        return {"upper": (0, int(np.asarray(image.convert("RGB")).max(initial=0)))} if image.info.get("upper") else {}
    array = values(image)
    return {name: (float(array.min(initial=math.inf)), float(array.max(initial=-math.inf)))} if array.size else {}


def joined(a: Ranges, b: Ranges) -> Ranges:
    """The ranges that hold both."""
    both = {name: [r[name] for r in (a, b) if name in r] for name in (*a, *b)}
    return {name: (min(low for low, _ in known), max(high for _, high in known)) for name, known in both.items()}


def chosen(ranges: Ranges) -> Ranges:
    """The scales of surveyed ranges: the narrowest usual one that holds what was surveyed, else from lowest to highest."""
    return {name: scale(name, *found) for name, found in ranges.items() if name in USUAL}


def scale(name: str, low: float, high: float) -> Range:
    if low >= 0:
        for top in USUAL[name]:
            if high <= top and (name == "whole" or high > FEW / 256 * top):
                return (0, top)
    elif name == "decimal" and low >= -1 and FEW / 256 < high <= 1:
        return (-1, 1)
    return (low, high) if high > low else (low, low + 1)


def to_8_bits(image: Image.Image, scales: Ranges | None) -> Image.Image:
    """A picture of a data set with these scales, in 8 bits; values beyond are black or white. None: of a picture alone."""
    name = kind(image)
    if name is None:
        return image
    black, white = (chosen(surveyed(image)) if scales is None else scales).get(name, DEFAULT[name])
    levels = (values(image) - black) * (255 / (white - black)) + SLACK
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def notes(scales: Ranges, ranges: Ranges) -> list[str]:
    """What a data set's scales are, and of which surveyed ranges."""
    lines = []
    for name, (black, white) in scales.items():
        low, high = ranges[name]
        lines.append(
            f"gray pictures of {name} numbers: in all of them {black:g} is black and {white:g} is white "
            f"(those surveyed hold {low:g} to {high:g}; what is beyond is cut)"
        )
    if ranges.get("upper", (0, DARK))[1] < DARK:
        lines.append(
            f"Warning: of colours of 16 bits the upper 8 are read, and these hold no more than {ranges['upper'][1]:g} of 255; "
            "if the pictures have fewer bits (12 in 16), save them with 8, or scaled to 16"
        )
    return lines


def of_facts(facts: dict[str, Any]) -> Ranges | None:
    """Scales as a manifest has them; None where the data set had no such pictures."""
    return {name: (low, high) for name, (low, high) in facts["levels"].items()} if facts.get("levels") else None
