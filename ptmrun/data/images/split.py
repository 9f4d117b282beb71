"""Images of one split."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ptmrun.data import modality
from ptmrun.data.images import decode


@dataclass
class Split(modality.Split):
    """Images of one split: uint8 [N, C, S, S] in memory (or memory-mapped), or a decoder; labels [N] or none.

    groups [N], or none: names of the subgroups (hospitals, cameras ...) that scores are told apart by. contents [N]: numbers that
    only images of equal pixels share.
    """

    pixels: Tensor | None
    decoder: decode.Decoder | None
    rows: Tensor  # [N] int64: this split's rows of `pixels` or `decoder`
    labels: Tensor | None
    workers: int = 0
    groups: np.ndarray | None = None
    contents: Tensor | None = None
    name_of: Callable[[int], str] = str  # of a row

    @property
    def sample_names(self) -> list[str]:
        return [self.name_of(row) for row in self.rows.tolist()]

    @property
    def group_ids(self) -> Tensor | None:
        """Equal pixels stay together."""
        return self.contents

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
        contents = None if self.contents is None else self.contents[indices]
        return replace(self, rows=self.rows[indices], labels=labels, groups=groups, contents=contents)

    def some(self, count: int) -> Tensor:
        """At most `count` images, evenly spaced: uint8 [count, C, S, S]."""
        return next(self.evenly_spaced(count).all(count))

    def all(self, size: int = 512) -> Iterator[Tensor]:
        """The whole split in order, in batches."""
        return self.batches(torch.arange(len(self)).split(size))
