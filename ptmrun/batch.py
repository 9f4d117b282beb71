"""What a batch's inputs are, and what a model must know of the data that they are from.

Images are a tensor [B, C, S, S], texts are Tokens, sounds are Waves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Samples(Protocol):
    """A batch of samples that are more than one tensor: a NamedTuple of tensors."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "Samples":
        """With each of its tensors changed."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


def packed(samples: "Tensor | Samples") -> dict[str, Tensor]:
    """By name, {"": samples} where it is one tensor."""
    named = {"": samples} if isinstance(samples, Tensor) else samples._asdict()
    return {name: value for name, value in named.items() if value is not None}


def unpacked(named: dict[str, Tensor], kind: type | None) -> Any:
    """What `packed` took apart. Raises KeyError or TypeError for what is not of this kind (None: one tensor)."""
    return named[""] if kind is None else kind(**named)


class Tokens(NamedTuple):
    """Token sequences of a batch, padded at the end to the longest."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool: False where there is padding
    types: Tensor  # [B, T] int64: 0 in the first text, 1 in the second of a pair
    documents: Tensor | None = None  # [B, T] int64: which of the packed documents a token is of, where it sees no other

    def map(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        """With each of its tensors changed."""
        documents = None if self.documents is None else change(self.documents)
        return Tokens(change(self.ids), change(self.mask), change(self.types), documents)

    def to(self, device: torch.device) -> "Tokens":
        return self.map(lambda x: x.to(device))


class Waves(NamedTuple):
    """Sounds of a batch, padded at the end with 0 to the longest."""

    values: Tensor  # [B, T] float32
    mask: Tensor  # [B, T] bool: False where there is padding

    def map(self, change: Callable[[Tensor], Tensor]) -> "Waves":
        """With both of its tensors changed."""
        return Waves(change(self.values), change(self.mask))

    def to(self, device: torch.device) -> "Waves":
        return self.map(lambda x: x.to(device))


def from_mark(documents: Tensor) -> Tensor:
    """The same, [B, T], but for the marks, which are of the document that follows: causal models begin with them."""
    return torch.cat([documents[:, 1:], documents[:, -1:]], 1)


@dataclass(frozen=True)
class Framing:
    """The special tokens of a model family and where they stand, as the tokenizers library writes it.

    special: {"pad_token": "[PAD]", "cls_token": "[CLS]" ...} under transformers' names; single: "[CLS] $A [SEP]";
    pair: "[CLS] $A [SEP] $B:1 [SEP]:1".
    """

    special: dict[str, str]
    single: str
    pair: str


@dataclass(frozen=True)
class Vocabulary:
    """Of a tokenizer. Token numbers are None where the family has no such token."""

    size: int
    pad: int
    unknown: int | None
    mask: int | None
    start: int | None  # first of a sequence: [CLS] or <s>
    end: int  # last of a text: [SEP], </s>, <|endoftext|>; between documents in packed sequences
    special: Tensor  # [size] bool: stands for no text
    continues: Tensor  # [size] bool: goes on with the word of the token before it
    stops: Tensor  # [size] bool: ends a sentence (. ! ?)


class ImageSpec(NamedTuple):
    """Square images of `size` pixels a side."""

    size: int
    channels: int


class TextSpec(NamedTuple):
    """Texts of at most `length` tokens."""

    vocabulary: Vocabulary
    length: int


class AudioSpec(NamedTuple):
    """Sounds of `rate` values a second and at most `length` values."""

    rate: int
    length: int
