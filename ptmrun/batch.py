"""Text as models see it: batches of token numbers, and what a model must know of the vocabulary that they are from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
