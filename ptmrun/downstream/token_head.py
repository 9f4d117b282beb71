"""What problems share that ask something of every token: a linear head on its hidden state, and a number of labelled samples."""

from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.batch import Tokens
from ptmrun.downstream.base import Model
from ptmrun.downstream.classification import exactly, linear
from ptmrun.errors import UserError


class Tokenwise(Model):
    """encoder.hidden -> `outputs` numbers a token."""

    def __init__(self, encoder: Any, outputs: int):
        super().__init__()
        self.encoder = encoder
        self.head = linear(encoder.width, outputs)

    def logits(self, tokens: Tokens, chosen: Tensor) -> Tensor:
        """Of the chosen tokens: [B, T], bool [B, T] -> float32 [n, outputs]"""
        return exactly(self.head, self.encoder.hidden(tokens)[chosen])

    def outputs(self, tokens: Tokens) -> Tensor:
        """Of all tokens: [B, T] -> float32 [B, T, outputs]"""
        return exactly(self.head, self.encoder.hidden(tokens))


def subset(split: Any, classes: list[str], count: int | None, seed: int) -> Tensor:
    """Indices of `count` samples in all, seeded; a smaller number gives a subset of a larger one's. None: all.

    Raises UserError when there are fewer.
    """
    if count is None:
        return torch.arange(len(split))
    if count > len(split):
        raise UserError(
            f"downstream.labels_per_class={count}: there are {len(split)} training samples in all; choose at most that, or null "
            f"for all of them"
        )
    return rng.permutation(seed, "labels", len(split))[:count]
