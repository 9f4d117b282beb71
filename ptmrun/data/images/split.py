"""Images of one split."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.data import modality
from ptmrun.data.block_shuffle import BlockShuffle
from ptmrun.data.images import decode
from ptmrun.data.sources import Masks, Scenes

SCENES = 32  # images of a batch


@dataclass
class Split(modality.Split):
    """Images of one split: uint8 [N, C, S, S] in memory (or memory-mapped), or a decoder; labels [N] or none.

    groups [N], or none: names of the subgroups (hospitals, cameras ...) that scores are told apart by. contents [N]: numbers that
    only images of equal pixels share. together [N], or none: numbers of what is to stay on one side of a split. shown: boxes of
    all of the source's images, by row, or none; masks: likewise. blocks: the numbers of the files that the source's images stand
    in, by row, or none; window: of how many of them images are shuffled together, None: of all.
    """

    pixels: Tensor | None
    decoder: decode.Decoder | None
    rows: Tensor  # [N] int64: this split's rows of `pixels` or `decoder`
    labels: Tensor | None
    workers: int = 0
    groups: np.ndarray | None = None
    contents: Tensor | None = None
    name_of: Callable[[int], str] = str  # of a row
    together: Tensor | None = None
    shown: Scenes | None = None
    masks: Masks | None = None
    blocks: Tensor | None = None
    window: int | None = None

    @property
    def block_shuffle(self) -> BlockShuffle | None:
        if self.window is None or self.blocks is None:
            return None
        return BlockShuffle(torch.unique_consecutive(self.blocks[self.rows], return_counts=True)[1], self.window)

    @property
    def side(self) -> int:
        """Of an image, in pixels."""
        if self.pixels is not None:
            return self.pixels.shape[-1]
        assert self.decoder is not None
        return self.decoder.size

    @property
    def sample_names(self) -> list[str]:
        return [self.name_of(row) for row in self.rows.tolist()]

    @property
    def group_ids(self) -> Tensor | None:
        """Equal pixels stay together, or what is to."""
        return self.contents if self.together is None else self.together

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

    def subset(self, indices: Tensor) -> Self:
        labels = None if self.labels is None else self.labels[indices]
        groups = None if self.groups is None else self.groups[indices.numpy()]
        contents, together = (None if x is None else x[indices] for x in (self.contents, self.together))
        return replace(self, rows=self.rows[indices], labels=labels, groups=groups, contents=contents, together=together)

    def moved(self, answers: Any, matrices: Tensor) -> Any:
        """Answers as they are after the images were sampled at affine maps [B, 2, 3] (see augment): the same, unless a subclass's
        have places."""
        return answers

    def some(self, count: int) -> Tensor:
        """At most `count` images, evenly spaced: uint8 [count, C, S, S]."""
        return next(self.evenly_spaced(count).all(count))

    def all(self, size: int = 512) -> Iterator[Tensor]:
        """The whole split in order, in batches; of scenes, which are large, fewer at a time."""
        return self.batches(torch.arange(len(self)).split(min(size, SCENES) if self.shown else size))
