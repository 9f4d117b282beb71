"""BEST-RQ (Chiu et al. 2022, arXiv:2202.01855): spans of frames are hidden, and the network says which code of a random codebook
their log-mel spectra are nearest to after a random projection. Neither is ever trained, so there is nothing that could collapse.

It asks the encoder for `extract(waves)`, `encode(extracted, there, hide)`, `log_mel(waves)` and `most`. Hidden frames are one
learned vector to it, as in wav2vec 2.0; published is noise in the place of their spectra.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.frame_masking import spans


class Objective(base.Objective):
    """`options`: start, span, codes, code_width."""

    projection: Tensor
    codebook: Tensor

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.options = encoder, options
        projection = torch.empty(encoder.mel.stack * encoder.mel.bands, options.code_width)
        self.register_buffer("projection", nn.init.xavier_uniform_(projection))
        self.register_buffer("codebook", F.normalize(torch.randn(options.codes, options.code_width), dim=1))
        self.head = nn.Linear(encoder.width, options.codes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Waves), rows. The loss is the cross-entropy in nats a hidden frame."""
        waves = batch["inputs"]
        extracted, there = self.encoder.extract(waves)
        hidden = self.hidden(batch, there)
        codes = self.codes(self.encoder.log_mel(waves)[0][hidden])
        logits = self.head(self.encoder.encode(extracted, there, hidden)[hidden]).float()
        right = (logits.argmax(1) == codes).sum()
        return Loss(F.cross_entropy(logits, codes, reduction="sum"), len(codes)), {"masked_accuracy": Loss(right, len(codes))}

    def hidden(self, batch: dict[str, Any], there: Tensor) -> Tensor:
        return spans(there, self.options.start, self.options.span, self.encoder.most, batch["rows"])

    @torch.no_grad()
    def codes(self, frames: Tensor) -> Tensor:
        """Of normalised spectra: float32 [n, F] -> [n] int64, the code that is nearest on the sphere."""
        with torch.autocast(frames.device.type, enabled=False):  # distances in full precision
            return (F.normalize(frames @ self.projection, dim=1) @ self.codebook.T).argmax(1)

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Which frames are hidden, [B, t] bool."""
        return {"hidden": self.hidden(batch, self.encoder.extract(batch["inputs"])[1])}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(codes)."""
        return math.log(self.options.codes)
