"""Names and colours of the classes of masks."""

import re
from pathlib import Path

from ptmrun.errors import UserError, printable

MOST = 255  # classes: 255 is what does not matter
NUMBERED = re.compile(r"(\d+)\s*[:,;=\s]\s*(\S.*)")  # "0 sea", "0: sea"
WHITE = [255, 255, 255]  # of what does not matter, in masks that are written


def usual(count: int) -> list[list[int]]:
    """The colours of Pascal VOC: the bits of a class's number, dealt out to red, green and blue from the highest down."""
    colours = []
    for number in range(count):
        colour = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                colour[channel] |= (number >> (3 * place + channel) & 1) << (7 - place)
        colours.append(colour)
    return colours


def names_in(file: Path) -> list[str]:
    """The names of a file that has one a line, with or without their numbers before them. Raises UserError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error})") from None
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if lines and all(match and int(match[1]) == place for place, match in enumerate(numbered)):
        lines = [match[2] for match in numbered if match]
    if len(lines) < 2 or len(lines) > MOST:
        raise UserError(f"{file}: {len(lines)} names; expected one of each class a line, 2 to {MOST}, that of class 0 first")
    if twice := [name for name in lines if lines.count(name) > 1]:
        raise UserError(f"{file}: {printable(twice[0])} stands there twice; classes have different names")
    return [printable(line) for line in lines]
