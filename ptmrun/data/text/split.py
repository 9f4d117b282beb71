"""Texts and sequences of one split."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import Tokens
from ptmrun.data import modality
from ptmrun.storage.content import number


@dataclass
class TextSplit(modality.Split):
    """Texts of one split, tokenized and framed with special tokens.

    ids, types: of every text of the source, int arrays [T]; texts: as they were read; seconds: of pairs, the second ones, else
    none; rows [N]: which of them this split has. labels: classes [N], or 0 and 1 [N, classes] where a text may have several, or
    none; groups [N] or none. names: what the user calls every text of the source, or none. column: of a table, that the texts
    stood in.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    texts: list[str]
    pad: int
    rows: Tensor
    labels: Tensor | None
    groups: np.ndarray | None = None
    seconds: list[str] | None = None
    names: list[str] | None = None
    column: str = ""

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"text_column": self.column} if self.column else {}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sample_names(self) -> list[str]:
        return [self.names[r] for r in self.rows.tolist()] if self.names else []

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, [N]."""
        return torch.tensor([len(self.ids[r]) for r in self.rows.tolist()])

    def read(self) -> list[str]:
        """The texts themselves, of pairs one after the other."""
        seconds = self.seconds
        return [self.texts[r] if seconds is None else f"{self.texts[r]}\n{seconds[r]}" for r in self.rows.tolist()]

    def documents(self) -> list[str]:
        """All that its samples are made of, text by text."""
        return [source[r] for source in (self.texts, self.seconds) if source for r in self.rows.tolist()]

    @property
    def group_ids(self) -> Tensor:
        """Equal texts stay together, whatever their case and white space."""
        return torch.tensor([number(" ".join(text.casefold().split()).encode(errors="replace")) for text in self.read()])

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tokens]:
        """The texts of each list of this split's indices, padded to the longest."""
        for indices in index_lists:
            rows = self.rows[indices].tolist()
            yield padded([self.ids[r] for r in rows], [self.types[r] for r in rows], self.pad)

    def subset(self, indices: Tensor) -> Self:
        labels = None if self.labels is None else self.labels[indices]
        groups = None if self.groups is None else self.groups[indices.numpy()]
        return replace(self, rows=self.rows[indices], labels=labels, groups=groups)

    def sorted_by_length(self) -> tuple[Self, Tensor | slice]:
        order = self.lengths.argsort(stable=True)
        return self.subset(order), order.argsort()


def padded(ids: list[np.ndarray], types: list[np.ndarray], pad: int) -> Tokens:
    """Sequences of different lengths as one batch."""
    lengths = torch.tensor([len(x) for x in ids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    filled, kinds = torch.full(mask.shape, pad), torch.zeros(mask.shape, dtype=torch.int64)
    filled[mask] = torch.from_numpy(np.concatenate(ids)).long()
    kinds[mask] = torch.from_numpy(np.concatenate(types)).long()
    return Tokens(filled, mask, kinds)


@dataclass
class Sequences(modality.Split):
    """Full-length sequences of a tokenized corpus, documents packed one after the other; rows [N]: which of them these are."""

    blocks: Any  # corpus.Blocks
    rows: Tensor
    labels = None
    groups = None

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def pairs(self) -> Any:
        """Pairs of texts from the same corpus."""
        return self.blocks.corpus.sentence_pairs(self.blocks.length)

    @property
    def bytes_per_token(self) -> float:
        return self.blocks.corpus.bytes / self.blocks.total

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tokens]:
        for indices in index_lists:
            yield self.blocks.batch(self.rows[indices])

    def subset(self, indices: Tensor) -> "Sequences":
        return Sequences(self.blocks, self.rows[indices])


def frames(texts: list[str], seconds: list[str] | None, tokenizer: Any, length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(ids, types) of each text, or of each pair of texts, with special tokens and at most `length` tokens."""
    ids = tokenizer.encode(texts)
    others = tokenizer.encode(seconds) if seconds else [None] * len(ids)
    pairs = [tokenizer.frame(a, b, length) for a, b in zip(ids, others, strict=True)]
    return [ids for ids, _ in pairs], [types for _, types in pairs]


def framed(source: Any, tokenizer: Any, length: int) -> dict[str, TextSplit]:
    """The labelled splits of a source, every text with its special tokens and at most `length` tokens."""
    by_split = {}
    for name, part in source.parts.items():
        firsts, seconds = list(part.documents()), part.seconds
        labels = None if part.labels is None else torch.from_numpy(part.labels)
        by_split[name] = TextSplit(
            *frames(firsts, seconds, tokenizer, length),
            firsts,
            tokenizer.vocabulary.pad,
            torch.arange(len(firsts)),
            labels,
            part.groups,
            seconds,
            part.names,
            source.column,
        )
    return by_split
