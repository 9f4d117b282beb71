"""Masked language modelling (Devlin et al. 2019, arXiv:1810.04805): tokens that are hidden anew each time, from the others.

It asks the encoder for `hidden(tokens)`, `logits(hidden)`, `vocabulary` and `length`.
"""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.masking import Masking, filled


class Objective(base.Objective):
    """It has no heads of its own: the logits belong to the library's model. `options`: those of `Masking`."""

    fills = True
    initial_within = 1.5  # heads that look at neighbours at first give 1.15 to 1.25 times the initial loss

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder
        self.masking = Masking(encoder.vocabulary, encoder.length, options)
        for module in encoder.pair_head:  # nothing here trains it
            module.requires_grad_(False)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens), rows. The loss is the cross-entropy in nats a hidden token; no others are projected."""
        tokens = batch["inputs"]
        shown, hidden = self.masking(tokens, batch["rows"])
        logits, wanted = self.encoder.logits(self.encoder.hidden(shown)[hidden]), tokens.ids[hidden]
        right = (logits.argmax(-1) == wanted).sum()
        total = F.cross_entropy(logits, wanted, reduction="sum")
        return Loss(total, len(wanted)), {"masked_accuracy": Loss(right, len(wanted))}

    def fill(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens are hidden, [B, T] bool, and the sequences with the likeliest ones in their place, [B, T]."""
        return filled(self.encoder, self.masking, batch)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        return math.log(self.encoder.vocabulary.size)
