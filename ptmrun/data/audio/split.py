"""Sounds of one split."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import Waves
from ptmrun.data import modality
from ptmrun.storage.content import number


@dataclass
class AudioSplit(modality.Split):
    """Sounds of one split. values: of every sound of the source, one after the other; firsts: where each begins there;
    all_lengths: how many of its values are used; transcripts: None where it has none; name_of: what the user calls it. rows [N]:
    which of them this split has. labels: classes [N] or none; groups [N] or none; contents [N]: numbers that only equal sounds
    share; together [N] or none: names of what is to stay on one side of a split."""

    values: np.ndarray
    firsts: Tensor
    all_lengths: Tensor
    rows: Tensor
    labels: Tensor | None
    contents: Tensor
    groups: np.ndarray | None = None
    together: np.ndarray | None = None
    transcripts: list[str | None] | None = None
    name_of: Callable[[int], str] = str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sample_names(self) -> list[str]:
        return [self.name_of(row) for row in self.rows.tolist()]

    @property
    def group_ids(self) -> Tensor:
        """Equal sounds stay together, or what is to."""
        if self.together is None:
            return self.contents
        return torch.tensor([number(str(name).encode()) for name in self.together])

    @property
    def lengths(self) -> Tensor:
        """Values of each sound, [N]."""
        return self.all_lengths[self.rows]

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Waves]:
        """The sounds of each list of this split's indices, padded to the longest."""
        for indices in index_lists:
            rows = self.rows[indices]
            places = zip(self.firsts[rows].tolist(), self.all_lengths[rows].tolist(), strict=True)
            yield padded([self.values[first : first + length] for first, length in places])

    def doubts(self, encoder: Callable[[], Any]) -> list[str]:
        """Warnings of what the encoder that it makes cannot learn of these."""
        return []

    def subset(self, indices: Tensor) -> Self:
        labels = None if self.labels is None else self.labels[indices]
        groups = None if self.groups is None else self.groups[indices.numpy()]
        together = None if self.together is None else self.together[indices.numpy()]
        contents = self.contents[indices]
        return replace(self, rows=self.rows[indices], labels=labels, groups=groups, together=together, contents=contents)

    def sorted_by_length(self) -> tuple[Self, Tensor | slice]:
        order = self.lengths.argsort(stable=True)
        return self.subset(order), order.argsort()


def of_waves(waves: list[np.ndarray]) -> AudioSplit:
    """Sounds, float32 [T] each, without labels."""
    lengths = torch.tensor([len(wave) for wave in waves])
    contents = torch.tensor([number(wave.tobytes()) for wave in waves])
    rows = torch.arange(len(waves))
    return AudioSplit(np.concatenate(waves), lengths.cumsum(0) - lengths, lengths, rows, None, contents)


def padded(waves: list[np.ndarray]) -> Waves:
    """Sounds of different lengths as one batch."""
    lengths = torch.tensor([len(wave) for wave in waves])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape)
    for row, wave in zip(values, waves, strict=True):
        row[: len(wave)] = torch.from_numpy(np.array(wave))
    return Waves(values, mask)
