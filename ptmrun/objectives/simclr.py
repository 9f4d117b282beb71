"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an image agree, and differ from all other views of the batch."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.teacher import mlp


class Objective(base.Objective):
    """`options`: temperature, hidden, projection (widths of the head), and those of the views."""

    compares = True
    collapse_hints = (
        "a lower task.temperature, a larger pretrain.batch_size, stronger task.colour or a smaller task.crop, a lower pretrain.lr"
    )

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.views, self.temperature = encoder, options, options.temperature
        self.head = mlp(encoder.width, options.hidden, options.projection, norm=False)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: views [2, B, C, S, S]. The loss is NT-Xent, the mean over the 2B views."""
        return self.compare(self.embed(batch), [batch])

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Projections of both views, [B, 2, projection]. With gradient accumulation the loop gathers those of all micro-batches
        before it compares them."""
        views = batch["views"]
        return self.head(self.encoder.features(views.flatten(0, 1))).unflatten(0, views.shape[:2]).transpose(0, 1)

    def compare(self, projections: Tensor, micros: list[dict[str, Any]]) -> tuple[Loss, dict[str, Loss]]:
        loss, right = nt_xent(projections, self.temperature)
        return Loss(loss, 2 * len(projections)), {"positive_first": Loss(right, 2 * len(projections))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of projections that do not tell images apart."""
        return math.log(2 * len(batch["ids"]) - 1)


def nt_xent(projections: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(sum over the 2B views of the normalised temperature-scaled cross-entropy, how many have their positive first); [B, 2, D].

    In float32 whatever autocast says: similarities over a small temperature need the digits.
    """
    with torch.autocast(projections.device.type, enabled=False):
        z = F.normalize(projections.to(torch.promote_types(projections.dtype, torch.float32)), dim=-1)
        z = z.transpose(0, 1).flatten(0, 1)
        count = len(z)
        similar = (z @ z.T / temperature).masked_fill(torch.eye(count, dtype=torch.bool, device=z.device), -math.inf)
        partner = (torch.arange(count, device=z.device) + count // 2) % count
        return F.cross_entropy(similar, partner, reduction="sum"), (similar.argmax(1) == partner).sum()
