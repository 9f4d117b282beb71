"""What the readers of formats give: pictures with boxes as their files have them, before these are checked."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ptmrun.data.sources.folders import SPLITS, files_below, nfc
from ptmrun.data.sources.imagefolder import SUFFIXES
from ptmrun.errors import UserError


class Box(NamedTuple):
    """corners: left, top, right, bottom in pixels; where: what the user finds it by, in its file."""

    category: str
    corners: tuple[float, float, float, float]
    ignored: bool
    where: str


@dataclass
class Annotated:
    """A picture and its boxes. name: its path below the root; size: width and height as the file of boxes says, or none; raw: it
    is shown as its pixels are stored, whatever its EXIF says of turns."""

    path: Path
    name: str
    boxes: list[Box]
    size: tuple[int, int] | None = None
    raw: bool = False


@dataclass
class Found:
    """What a format's files hold. parts: by split; categories: names in their order; numbers: how the files number them."""

    parts: dict[str, list[Annotated]]
    categories: list[str]
    numbers: list[int]
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def split_of(path: Path) -> str:
    """The split that a path below a root names, by its folders or by words of its file's name; else "train"."""
    for part in (*path.parts[:-1], path.stem):
        for word in (part.lower(), *re.split(r"[^a-z]+", part.lower())):
            if word in SPLITS:
                return SPLITS[word]
    return "train"


class Images:
    """The images below a root, by path and by name."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = files_below(root, SUFFIXES)
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self.by_name[nfc(path.name)].append(path)
            self.by_name[nfc(path.stem)].append(path)

    def named(self, name: str, split: str = "") -> Path | None:
        """The one of this name, with or without folders and ending; of several the one whose path ends so, or whose folder is
        called as the split is. Raises UserError where it is still not clear which."""
        wanted = Path(nfc(name.replace("\\", "/")))
        known = list(dict.fromkeys(self.by_name.get(wanted.name, [])))
        for narrow in (
            lambda p: p.parts[-len(wanted.parts) :] == wanted.parts,
            lambda p: split_of(p.relative_to(self.root)) == split,
        ):
            if len(known) > 1:
                known = [p for p in known if narrow(p)] or known
        if len(known) > 1:
            both = " and ".join(str(p.relative_to(self.root)) for p in known[:2])
            raise UserError(f"{self.root}: {name}: is {both}; give images names of their own")
        return known[0] if known else None

    def name_of(self, path: Path) -> str:
        return str(path.relative_to(self.root))


def listed(what: str, names: Iterable[str], most: int = 3) -> str:
    """ "3 images without a label (a.png, b.png, ...)" """
    names = list(names)
    return f"{len(names):,} {what} ({', '.join(names[:most])}{', ...' if len(names) > most else ''})"
