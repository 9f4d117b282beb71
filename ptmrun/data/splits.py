"""Source -> train, val and test splits with decoded or decodable images. The splits never depend on the run's seed."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.config import Dataset
from ptmrun.data import decode
from ptmrun.data.sources import Part, Source
from ptmrun.errors import UserError


@dataclass
class Split:
    """Images of one split: uint8 [N, C, S, S] in memory (or memory-mapped), or a decoder; labels [N] or none.

    groups [N], or none: names of the subgroups (hospitals, cameras ...) that scores are told apart by.
    """

    pixels: Tensor | None
    decoder: decode.Decoder | None
    rows: Tensor  # [N] int64: this split's rows of `pixels` or `decoder`
    labels: Tensor | None
    workers: int = 0
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tensor]:
        """uint8 [B, C, S, S] for each list of this split's indices, in order."""
        if self.pixels is not None:
            for indices in index_lists:
                yield self.pixels[self.rows[indices]]
        else:
            assert self.decoder is not None
            for images, _ in self.decoder.batches((self.rows[i].tolist() for i in index_lists), self.workers):
                yield images

    def subset(self, indices: Tensor) -> "Split":
        labels = None if self.labels is None else self.labels[indices]
        groups = None if self.groups is None else self.groups[indices.numpy()]
        return Split(self.pixels, self.decoder, self.rows[indices], labels, self.workers, groups)

    def spaced(self, count: int) -> "Split":
        """At most `count` of the samples, evenly spaced."""
        return self.subset(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def some(self, count: int) -> Tensor:
        """At most `count` images, evenly spaced: uint8 [count, C, S, S]."""
        return next(self.spaced(count).all(count))

    def all(self, size: int = 512) -> Iterator[Tensor]:
        """The whole split in order, in batches."""
        return self.batches(torch.arange(len(self)).split(size))


@dataclass
class Data:
    """The data of a run. `mean` and `std` [C] are of the training images scaled to [0, 1]."""

    train: Split
    val: Split
    test: Split
    classes: list[str]
    channels: int
    size: int
    mean: Tensor
    std: Tensor
    fingerprint: str
    notes: list[str] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)  # names of the images in splits that were made here
    unreadable: list[str] = field(default_factory=list)


def load(
    read: Callable[[Any], Source],
    options: Dataset,
    workers: int,
    progress: Callable[[str, int, int], None],
    fitting: Callable[[int], int] = int,
) -> Data:
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
    made = {}
    train, val, test = sets["train"], sets.get("val"), sets.get("test")
    if test is None and val is not None:
        test, val = val, None
        notes.append("there is no test split: the validation split takes its place")
    if test is None:
        train, test = hold_out(train, options.test_fraction, options.split_seed, "test")
        made["test"] = test
        notes.append(f"there is no test split: {len(test)} images of {len(train) + len(test)} are held out (splits.json)")
    if options.limit and options.limit < len(train):
        _, train = hold_out(train, options.limit / len(train), options.split_seed, "limit")
    if options.test_limit and options.test_limit < len(test):
        _, test = hold_out(test, options.test_limit / len(test), options.split_seed, "test_limit")
    if val is None:
        train, val = hold_out(train, options.val_fraction, options.split_seed, "val")
        made["val"] = val
    if min(len(train), len(val), len(test)) == 0:
        raise UserError(f"dataset={options.name}: {total} images are too few to be split into train, val and test")
    if made:
        made["train"] = train
    listed = {name: [names["train"](int(r)) for r in split.rows] for name, split in made.items()}
    mean, std = moments(train)
    key = [
        source.fingerprint,
        size,
        channels,
        *(hashlib.sha256(s.rows.numpy().tobytes()).hexdigest() for s in (train, val, test)),
        *(hashlib.sha256(json.dumps(s.groups.tolist()).encode()).hexdigest() for s in (train, val, test) if s.groups is not None),
    ]
    fingerprint = hashlib.sha256("/".join(map(str, key)).encode()).hexdigest()
    return Data(train, val, test, source.classes, channels, size, mean, std, fingerprint, notes, listed, unreadable)


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


def hold_out(split: Split, fraction: float, seed: int, purpose: str) -> tuple[Split, Split]:
    """(the rest, the held-out share), seeded; the same share of every class where there are labels."""
    order = rng.permutation(seed, f"split/{purpose}", len(split))
    held = torch.zeros(len(split), dtype=torch.bool)
    kinds = [order] if split.labels is None else [order[split.labels[order] == c] for c in split.labels.unique()]
    for members in kinds:
        held[members[: round(fraction * len(members))]] = True
    if not held.any() and len(split) > 1:
        held[order[0]] = True
    return split.subset(torch.nonzero(~held)[:, 0]), split.subset(torch.nonzero(held)[:, 0])


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
