"""One file a kind of source; each has `read(options)` -> Source, TextSource for text, or PairSource for both. A dataset's YAML
names its file in `spec.module`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

IGNORED = 255  # of a mask: a pixel that no loss and no score counts


class Pictures(Protocol):
    """Images that must be decoded one by one."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> Image.Image:
        """Raises OSError, SyntaxError or ValueError when it cannot be decoded."""
        ...

    def label_of(self, index: int) -> str:
        """What the user calls this image: a path, or a split and number."""
        ...


class Masks(Protocol):
    """Which class each pixel of the images of a split is of. classes: names, in the order of their numbers; palette: a colour
    (red, green, blue) of each; fingerprint: of all that they hold."""

    classes: list[str]
    palette: list[list[int]]
    fingerprint: str

    def __len__(self) -> int: ...

    def has(self, index: int) -> bool:
        """Whether the image has one."""
        ...

    def mask(self, index: int) -> np.ndarray | None:
        """uint8 [H, W], of the image's proportions: classes, and IGNORED where it does not matter; None: the image has none.
        Raises UserError for one that cannot be used."""
        ...


@dataclass(frozen=True)
class Scene:
    """A whole picture and what stands in it. name: what the user calls it; corners float32 [n, 4]: left, top, right and bottom of
    each box in pixels; classes int64 [n]; ignored bool [n]: crowds and the like, where finding something is neither right nor
    wrong."""

    name: str
    width: int
    height: int
    corners: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


class Window(NamedTuple):
    """A square of a scene, which may reach beyond it."""

    scene: int
    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Scenes:
    """What the pictures of a split show: each is a window of a scene. numbers: how the source numbers its categories; tile: side
    of the squares that large scenes are cut into, None: they are not; overlap: the share that neighbours have in common."""

    scenes: list[Scene]
    windows: list[Window]
    numbers: list[int]
    tile: int | None = None
    overlap: float = 0.0


@dataclass(frozen=True)
class Part:
    """A split: uint8 [N, H, W] or [N, H, W, C] in memory, or pictures; labels [N] int64 or none; groups [N] text or none;
    together [N] int64 or none: pictures with equal numbers stay on one side of a split; shown, masks: boxes, and the classes of
    pixels, where there are any; blocks [N]: numbers of their files, where these are shuffled (dataset.window)."""

    images: np.ndarray | Pictures
    labels: np.ndarray | None
    groups: np.ndarray | None = None
    together: np.ndarray | None = None
    shown: Scenes | None = None
    masks: Masks | None = None
    blocks: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """Splits named train, val, test (train is always there) and the class names in the order of the labels."""

    parts: dict[str, Part]
    classes: list[str]
    fingerprint: str  # of names, labels and contents
    notes: list[str]
    older_fingerprint: str = ""  # by which runs of earlier versions know the same data
    side: int | None = None  # in pixels, that pictures want; None: their own
    faults: tuple[str, ...] = ()  # by file, what was left out or mended


@dataclass(frozen=True)
class PairSource:
    """Images with captions. captions: by split, those of each of its images, at least one, none of them empty; together: by split
    a name for each image [N], or none: images of one name are never on both sides of a split, and captions of one fit the others
    too. notes and fingerprint: those of the images hold for all."""

    images: Source
    captions: dict[str, list[list[str]]]
    together: dict[str, list[str]] | None = None


@dataclass(frozen=True)
class TextPart:
    """A split of texts. `documents()` streams them from the start, any number of times; none is empty.

    A document is its sentences, one a line, where it comes that way, or prose. labels: int64 [N], of several classes a text
    bool [N, classes], or none; seconds: the second texts of pairs, N, or none; groups: [N] text or none.
    names: what the user calls each text that has a label or a second one (its file and line, or row), N, or none.
    """

    documents: Callable[[], Iterator[str]]
    count: int  # N
    size: int  # of all documents, bytes in UTF-8
    fingerprint: str  # sha256 of the documents
    labels: np.ndarray | None = None
    seconds: list[str] | None = None
    groups: np.ndarray | None = None
    names: list[str] | None = None


@dataclass(frozen=True)
class TextSource:
    """Splits named train, val, test (train is always there) and the class names in the order of the labels."""

    parts: dict[str, TextPart]
    classes: list[str]
    fingerprint: str  # sha256 of documents, labels, second texts and groups of all splits
    notes: list[str]
    column: str = ""  # of a table, that the texts stood in


class Clips(Protocol):
    """Sounds that must be decoded, or spoken, one by one."""

    decoder: str  # what does it, and its version

    def __len__(self) -> int: ...

    def wave(self, index: int, rate: int, most: int) -> np.ndarray:
        """Its first values, at most so many, at this rate: float32 [T], one channel. Raises sounds.Broken."""
        ...

    def rate_of(self, index: int) -> int:
        """Values a second that it has, 0 where it cannot be read."""
        ...

    def label_of(self, index: int) -> str:
        """What the user calls it."""
        ...


@dataclass(frozen=True)
class AudioPart:
    """A split of sounds: labels [N] int64 or none; transcripts N, None where a sound has none, or none at all; groups [N] text or
    none; together [N] text or none: sounds with equal ones stay on one side of a split that is made."""

    clips: Clips
    labels: np.ndarray | None
    transcripts: list[str | None] | None = None
    groups: np.ndarray | None = None
    together: np.ndarray | None = None


@dataclass(frozen=True)
class AudioSource:
    """Splits named train, val, test (train is always there) and the class names in the order of the labels."""

    parts: dict[str, AudioPart]
    classes: list[str]
    fingerprint: str  # of names, labels, transcripts and contents
    notes: list[str]
