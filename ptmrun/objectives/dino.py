"""DINO (Caron et al. 2021, arXiv:2104.14294): a student's probabilities match its moving average's, centred and sharpened."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.teacher import ema_update, frozen_copy, mlp, momentum_at

GLOBAL = 2  # views that the teacher sees; all others are for the student alone


class Head(nn.Module):
    """An MLP (with batch normalisation, the published choice for convolutional encoders), its output scaled to length 1, and its
    cosine with each prototype."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.mlp = mlp(width, hidden, hidden, bottleneck, norm=True)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] -> float32 [B, prototypes]"""
        projected = self.mlp(features)
        with torch.autocast(projected.device.type, enabled=False):
            return F.normalize(projected.to(self.prototypes.dtype), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class Objective(base.Objective):
    """`options`: prototypes, hidden, bottleneck, momentum, center_momentum, student_temperature, teacher_temperature (reached
    after a share `warmup` of the steps, from `first_temperature`), and those of the views."""

    collapse_hints = (
        "a lower task.teacher_temperature, a task.momentum nearer to 1, a lower pretrain.lr, a larger pretrain.batch_size"
    )

    center: Tensor
    seen: Tensor
    progress: Tensor

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.views, self.options = encoder, options, options
        self.head = Head(encoder.width, options.hidden, options.bottleneck, options.prototypes)
        self.teacher: Any = nn.Sequential(frozen_copy(encoder), frozen_copy(self.head))
        self.register_buffer("center", torch.zeros(options.prototypes))
        self.register_buffer("seen", torch.zeros(options.prototypes + 1))  # of this step: the teacher's outputs, and how many
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: views [V, B, C, S, S]. The loss is the cross-entropy of the student's probabilities under the teacher's of
        another view, the mean over pairs of views and images."""
        views = batch["views"]
        student = self.head(self.encoder.features(views.flatten(0, 1))).unflatten(0, views.shape[:2])
        with torch.no_grad():
            teacher = self.teacher[1](self.teacher[0].features(views[:GLOBAL].flatten(0, 1))).unflatten(0, (GLOBAL, -1))
            self.seen += torch.cat([teacher.sum((0, 1)), teacher.new_tensor([GLOBAL * views.shape[1]])])
            wanted = ((teacher - self.center) / self.temperature()).softmax(-1)
        said = (student / self.options.student_temperature).log_softmax(-1)
        pairs = [(i, j) for i in range(GLOBAL) for j in range(len(views)) if i != j]
        loss = sum(-(wanted[i] * said[j]).sum() for i, j in pairs) / len(pairs)
        entropy = -(wanted * wanted.clamp(min=1e-12).log()).sum()
        return Loss(loss, views.shape[1]), {"teacher_entropy": Loss(entropy, GLOBAL * views.shape[1])}

    def temperature(self) -> Tensor:
        first, last = self.options.first_temperature, self.options.teacher_temperature
        return first + (last - first) * (self.progress / self.options.warmup).clamp(max=1)

    def after_step(self, done: int, steps: int) -> None:
        self.center.lerp_(self.seen[:-1] / self.seen[-1], 1 - self.options.center_momentum)
        self.seen.zero_()
        self.progress.fill_(done / steps)
        momentum = momentum_at(self.options.momentum, done / steps)
        ema_update(self.teacher[0], self.encoder, momentum)
        ema_update(self.teacher[1], self.head, momentum)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities."""
        return math.log(self.options.prototypes)
