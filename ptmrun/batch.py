"""What a batch's inputs are, and what a model must know of the data that they are from.

Images are a tensor [B, C, S, S], texts are Tokens, sounds are Waves, images with a text each are a Pair.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, get_type_hints, runtime_checkable

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
    """By name, {"": samples} where it is one tensor; of samples in samples the names have a dot."""
    if isinstance(samples, Tensor):
        return {"": samples}
    named: dict[str, Tensor] = {}
    for name, value in samples._asdict().items():
        if value is not None:
            named |= {f"{name}.{inner}".rstrip("."): tensor for inner, tensor in packed(value).items()}
    return named


def unpacked(named: dict[str, Tensor], kind: Any) -> Any:
    """What `packed` took apart. Raises KeyError or TypeError for what is not of this kind (None: one tensor)."""
    if kind is None:
        return named[""]
    values: dict[str, Any] = {name: value for name, value in named.items() if "." not in name}
    for first in {name.split(".")[0] for name in named if "." in name}:
        inner = {name.removeprefix(f"{first}."): value for name, value in named.items() if name.startswith(f"{first}.")}
        values[first] = unpacked(inner, get_type_hints(kind)[first])
    return kind(**values)


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


class Boxes(NamedTuple):
    """Boxes in the images of a batch, padded at the end to the most."""

    corners: Tensor  # [B, n, 4] float32: left, top, right, bottom in pixels
    classes: Tensor  # [B, n] int64: NO_BOX where there is padding
    ignored: Tensor  # [B, n] bool: finding something there is neither right nor wrong

    def map(self, change: Callable[[Tensor], Tensor]) -> "Boxes":
        """With each of its tensors changed."""
        return Boxes(*map(change, self))

    def to(self, device: torch.device) -> "Boxes":
        return self.map(lambda x: x.to(device))


NO_BOX = -1


class Pair(NamedTuple):
    """Images with a text each."""

    images: Tensor  # [B, C, S, S]
    tokens: Tokens  # [B, T]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Pair":
        """With each of its tensors changed."""
        return Pair(change(self.images), self.tokens.map(change))


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


class PairSpec(NamedTuple):
    """Images with texts."""

    image: ImageSpec
    text: TextSpec
