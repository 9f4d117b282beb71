"""Causal modelling of tokens (GPT; for pixels Chen et al. 2020, "Generative Pretraining from Pixels"): each from those before it.

It asks the encoder for `tokens(images)`, `logits(tokens)`, `vocabulary` and `unit`; for pictures for `complete` and `images`.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun.loss import Loss


class Objective(nn.Module):
    """It has no heads of its own: the logits belong to the library's causal model."""

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S]. The loss is the cross-entropy in nats a token; beside it, in bits."""
        tokens = self.encoder.tokens(batch["inputs"])
        total = F.cross_entropy(self.encoder.logits(tokens).flatten(0, 1), tokens.flatten(), reduction="sum")
        bits = Loss(total.detach() / math.log(2), tokens.numel())
        return Loss(total, tokens.numel()), {f"bits_per_{self.encoder.unit}": bits}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        return math.log(self.encoder.vocabulary)

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Images as their tokens show them, the half that is given, and two samples of the other half."""
        tokens = self.encoder.tokens(batch["inputs"])
        given = tokens.shape[1] // 2
        original = self.encoder.images(tokens)
        half = original.clone()
        half[:, :, original.shape[2] // 2 :] = 0
        shown = {"original": original, "given": half}
        for i in (1, 2):
            noise = batch["rows"].uniform(f"completed {i}", tokens.shape[1] - given).to(tokens.device)
            shown[f"completed {i}"] = self.encoder.images(self.encoder.complete(tokens[:, :given], noise))
        return shown
