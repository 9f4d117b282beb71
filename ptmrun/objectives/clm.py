"""Causal modelling of tokens: each from those before it (GPT: Radford et al. 2018; for pixels Chen et al. 2020, "Generative
Pretraining from Pixels"), or with a second stack also from those after it (ELMo: Peters et al. 2018, arXiv:1802.05365).

It asks the encoder for `next_tokens(inputs)`, `vocabulary` and `unit`; for pictures for `draw`, `draws` and `completed`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base

DROP = 0.1  # share of the images of classes that are learned without one, for guidance


class Objective(base.Objective):
    """It has no heads of its own: the logits belong to the library's causal model."""

    draws = judged = True

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens or images). The loss is the cross-entropy in nats a token; beside it, in bits."""
        logits, wanted = self.encoder.next_tokens(batch["inputs"], *self.given(batch))
        total, count = F.cross_entropy(logits, wanted, reduction="sum"), len(wanted)
        bits = Loss(total.detach() / math.log(2), count)
        right = (logits.argmax(-1) == wanted).sum()
        return Loss(total, count), {f"bits_per_{self.encoder.unit}": bits, "accuracy": Loss(right, count)}

    def given(self, batch: dict[str, Any]) -> tuple[Tensor, ...]:
        """The classes of images [B], where the encoder has a token for each; in training DROP of them are without (-1)."""
        if not self.encoder.classes:
            return ()
        labels = batch["labels"]
        if self.training:
            labels = torch.where((batch["rows"].uniform("class") < DROP).to(labels.device), -1, labels)
        return (labels,)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        known = self.encoder.vocabulary
        return math.log(known if isinstance(known, int) else known.size)

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Images as their tokens show them, the half that is given, two samples of the other half, and new images, of the same
        classes where the encoder has some."""
        images, count = batch["inputs"], self.encoder.draws
        noises = [batch["rows"].uniform(purpose, count).to(images.device) for purpose in ("completed 1", "completed 2", "drawn")]
        classes = batch["labels"] if self.encoder.classes else None
        return {**self.encoder.completed(images, noises[:2]), "drawn": self.encoder.draw(noises[2], classes)}
