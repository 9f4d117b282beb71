"""A piece of each series is set to 0, and the network says what stood there."""

from typing import Any

import torch
from torch import nn

from ptmrun.loss import Loss
from ptmrun.objectives import base


class Objective(base.Objective):
    """`options`: share, of a series that is hidden."""

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.share = encoder, options.share
        self.head = nn.Conv1d(encoder.width, 1, 1)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, 1, T], rows. The loss is the squared error of the hidden numbers."""
        series = batch["inputs"]
        length = series.shape[2]
        size = max(1, round(self.share * length))
        first = (batch["rows"].uniform("fill", 1) * (length - size + 1)).long().to(series.device)
        place = torch.arange(length, device=series.device)
        hidden = ((place >= first) & (place < first + size))[:, None]
        found = self.head(self.encoder.positions(series.masked_fill(hidden, 0.0)))
        return Loss((found - series)[hidden].square().sum(), int(hidden.sum())), {}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of the mean: the variance of the inputs."""
        return 1.0
