"""Images as the data of a run: a source becomes train, val and test splits. They never depend on the run's seed."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.config.schema import Config, Dataset
from ptmrun.data.images import decode
from ptmrun.data.images.batches import Batches, Normalise
from ptmrun.data.sources import Part, Source
from ptmrun.data.splits import Split, divide
from ptmrun.errors import UserError

MOST_COLUMNS = 3072  # values of an image, for the classical baseline


@dataclass
class Images:
    """The data of a run (see data/__init__.py). `mean` and `std` [C] are for images scaled to [0, 1], and `normalise` is
    what dataset.normalise came to."""

    noun = "images"
    held = None  # pretraining is judged by probes

    train: Split
    val: Split
    test: Split
    classes: list[str]
    channels: int
    size: int
    mean: Tensor
    std: Tensor
    normalise: str | list[float]
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)  # names of the images in splits that were made here
    unreadable: list[str] = field(default_factory=list)

    @property
    def corpus(self) -> Split:
        return self.train

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.channels

    @property
    def preprocessing(self) -> tuple[list[float], list[float]]:
        return self.mean.tolist(), self.std.tolist()

    @property
    def settled(self) -> dict[str, Any]:
        return {"dataset__image_size": self.size, "dataset__normalise": self.normalise}

    @property
    def facts(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    def __str__(self) -> str:
        channels = {1: "gray", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        return f"{self.size}x{self.size} {channels}, {len(self.classes)} classes"

    def inputs(self, device: torch.device) -> Normalise:
        return Normalise(self.mean, self.std, device)

    def batches(
        self, model: Any, split: Split, cfg: Config, loop: Any, size: int, seed: int, purpose: str, inputs: Any
    ) -> Batches:
        """With `views` of each image, mixed with the `alphas` of MixUp and CutMix, or plain, as the model wants them."""
        wanted, alphas = getattr(model, "views", None), getattr(model, "alphas", (0.0, 0.0))
        parts = min(loop.accumulate, size)
        return Batches(split, inputs, cfg.dataset.augment, loop.augment, size, parts, seed, purpose, wanted, alphas)

    @functools.cached_property
    def test_pixels(self) -> np.ndarray:
        return pixels(self.test)

    def raw(self, train: Split) -> tuple[np.ndarray, np.ndarray, float]:
        return pixels(train), self.test_pixels, 1.0


def load(
    read: Callable[[Any], Source],
    options: Dataset,
    workers: int,
    progress: Callable[[str, int, int], None],
    fitting: Callable[[int], int] = int,
) -> Images:
    """Reads the source, decodes it or not, and splits it. Raises UserError for data that cannot be used.

    With image_size=auto, `fitting` makes of the data's own side the one that is wanted.
    """
    source = read(options)
    notes, unreadable = list(source.notes), []
    size, channels = shape(source, options)
    if options.image_size == "auto" and (wanted := fitting(size)) != size:
        notes.append(f"images are scaled from {size}x{size} to {wanted}x{wanted}, the nearest that the model's patches divide")
        size = wanted
    sets: dict[str, Split] = {}
    names: dict[str, Callable[[int], str]] = {}
    for name, part in source.parts.items():
        sets[name], bad = as_split(part, f"{source.fingerprint}/{name}", size, channels, options, workers, progress)
        names[name] = str if isinstance(part.images, np.ndarray) else part.images.label_of
        unreadable += bad
    total = sum(len(s) for s in sets.values()) + len(unreadable)
    if len(unreadable) > options.max_unreadable * total:
        raise UserError(
            f"dataset.root={options.root}: {len(unreadable)} of {total} images cannot be decoded (the first: {unreadable[0]}), "
            f"more than dataset.max_unreadable={options.max_unreadable:g}"
        )
    if unreadable:
        notes.append(f"{len(unreadable)} of {total} images cannot be decoded and are skipped (listed in unreadable.txt)")
    train, val, test, made = divide(sets, options, "images", notes)
    listed = {name: [names["train"](int(r)) for r in split.rows] for name, split in made.items()}
    normalise = "data" if options.normalise == "auto" else options.normalise
    mean, std = moments(train) if normalise == "data" else given(normalise, channels)
    key = [
        source.fingerprint,
        size,
        channels,
        *(hashlib.sha256(s.rows.numpy().tobytes()).hexdigest() for s in (train, val, test)),
        *(hashlib.sha256(json.dumps(s.groups.tolist()).encode()).hexdigest() for s in (train, val, test) if s.groups is not None),
    ]
    fingerprint = hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()
    return Images(train, val, test, source.classes, channels, size, mean, std, normalise, fingerprint, notes, listed, unreadable)


def shape(source: Source, options: Dataset) -> tuple[int, int]:
    """(side, channels): the data's own where images are in memory and square, else from a survey of the pictures."""
    images = source.parts["train"].images
    if isinstance(images, np.ndarray):
        side, channels = min(images.shape[1:3]), images.shape[3] if images.ndim == 4 else 1
    else:
        side, channels = decode.survey(images)
        side = min((32, 48, 64, 96, 128, 160, 192, 224), key=lambda s: abs(s - side))
    return (side if options.image_size == "auto" else options.image_size), channels


class Arrays:
    """Images in memory as pictures, for resizing."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> Any:
        return decode.Image.fromarray(self.images[index])

    def label_of(self, index: int) -> str:
        return str(index)


def as_split(
    part: Part,
    fingerprint: str,
    size: int,
    channels: int,
    options: Dataset,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Split, list[str]]:
    """The split with its unreadable pictures left out, and their names."""
    labels = None if part.labels is None else torch.from_numpy(part.labels)
    images = part.images
    if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
        pixels = torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), size, size, channels).transpose(0, 3, 1, 2)))
        return Split(pixels, None, torch.arange(len(images)), labels, groups=part.groups), []
    pictures = Arrays(images) if isinstance(images, np.ndarray) else images
    decoder = decode.Decoder(pictures, size, channels)
    if len(pictures) * channels * size**2 > options.cache_gb * 2**30:
        return Split(None, decoder, torch.arange(len(pictures)), labels, workers, part.groups), []
    pixels, good = decode.decoded(decoder, fingerprint, workers, lambda n: progress("decoding", n, len(pictures)))
    rows = torch.from_numpy(np.flatnonzero(good))
    bad = [pictures.label_of(int(i)) for i in np.flatnonzero(~good)]
    return Split(pixels, None, torch.arange(len(pictures)), labels, groups=part.groups).subset(rows), bad


def given(numbers: list[float], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [C]; of gray images the means of those for three."""
    mean, std = torch.tensor(numbers[: len(numbers) // 2 * 2]).view(2, -1)
    if channels == 1 and len(numbers) == 6:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    if len(mean) != channels or len(numbers) % 2 or std.min() <= 0:
        raise UserError(
            f"dataset.normalise={numbers}: expected {2 * channels} numbers, the means of the channels and then their standard "
            "deviations, for pixels from 0 to 1"
        )
    return mean, std


def moments(train: Split, most: int = 5000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over evenly spaced training images, scaled to [0, 1]."""
    chosen = torch.linspace(0, len(train) - 1, min(most, len(train))).long()
    count, total, squares = 0, torch.zeros(0), torch.zeros(0)
    for images in train.batches(chosen.split(512)):
        x = images.double() / 255
        count += x[:, 0].numel()
        s, q = x.sum((0, 2, 3)), x.square().sum((0, 2, 3))
        total, squares = (total + s, squares + q) if total.numel() else (s, q)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.float().clamp(min=1e-3)


def pixels(split: Split) -> np.ndarray:
    """Images as float32 rows in [0, 1]; large ones are averaged down to at most MOST_COLUMNS values."""
    rows = []
    for images in split.all():
        x = images.float() / 255
        while x[0].numel() > MOST_COLUMNS:
            x = F.avg_pool2d(x, 2)
        rows.append(x.flatten(1))
    return torch.cat(rows).numpy()
