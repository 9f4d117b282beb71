"""BYOL (Grill et al. 2020, arXiv:2006.07733): a student predicts its own moving average's view of the image."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.teacher import ema_update, frozen_copy, mlp, momentum_at


class Objective(base.Objective):
    """`options`: momentum, hidden, projection (widths of the heads), and those of the views."""

    collapse_hints = "a task.momentum nearer to 1, a lower pretrain.lr, a larger pretrain.batch_size"

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.views, self.momentum = encoder, options, options.momentum
        self.projector = mlp(encoder.width, options.hidden, options.projection, norm=True)
        self.predictor = mlp(options.projection, options.hidden, options.projection, norm=True)
        self.teacher: Any = nn.Sequential(frozen_copy(encoder), frozen_copy(self.projector))

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: views [2, B, C, S, S]. The loss is 2 - 2 cos, summed over both directions, mean over images."""
        views = batch["views"].flatten(0, 1)
        predicted = self.predictor(self.projector(self.encoder.features(views)))
        with torch.no_grad():
            wanted = self.teacher[1](self.teacher[0].features(views))
        loss = 2 - 2 * F.cosine_similarity(predicted.float(), wanted.float().roll(len(views) // 2, 0), dim=-1)
        return Loss(loss.sum(), len(views) // 2), {}

    def after_step(self, done: int, steps: int) -> None:
        momentum = momentum_at(self.momentum, done / steps)
        ema_update(self.teacher[0], self.encoder, momentum)
        ema_update(self.teacher[1], self.projector, momentum)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of predictions that have nothing to do with what they should be."""
        return 4.0
