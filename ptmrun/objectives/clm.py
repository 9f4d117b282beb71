"""Causal modelling of tokens: each from those before it (GPT: Radford et al. 2018; for pixels Chen et al. 2020, "Generative
Pretraining from Pixels"), or with a second stack also from those after it (ELMo: Peters et al. 2018, arXiv:1802.05365).

It asks the encoder for `next_tokens(inputs)`, `vocabulary` and `unit`; for pictures for `tokens`, `complete` and `images`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base


class Objective(base.Objective):
    """It has no heads of its own: the logits belong to the library's causal model."""

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens or images). The loss is the cross-entropy in nats a token; beside it, in bits."""
        logits, wanted = self.encoder.next_tokens(batch["inputs"])
        total, count = F.cross_entropy(logits, wanted, reduction="sum"), len(wanted)
        bits = Loss(total.detach() / math.log(2), count)
        right = (logits.argmax(-1) == wanted).sum()
        return Loss(total, count), {f"bits_per_{self.encoder.unit}": bits, "accuracy": Loss(right, count)}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        known = self.encoder.vocabulary
        return math.log(known if isinstance(known, int) else known.size)

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
