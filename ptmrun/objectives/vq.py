"""Vector quantisation (van den Oord et al. 2017, arXiv:1711.00937) with codes of length 1 in a few dimensions (Yu 2022)."""

from typing import Any

import torch
from torch import Tensor

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.codes import Quantiser


class Objective(base.Objective):
    """`options`: those of Quantiser."""

    judged = True
    collapse_hints = "a lower pretrain.lr, a lower task.restart, fewer model.codes"

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder
        self.encoder.gpt.requires_grad_(False)
        self.quantiser = Quantiser(encoder.codec, options)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (images, or with captions), rows. The loss is the squared error, mean over values, and that of codes."""
        images = self.encoder.images_of(batch["inputs"])
        error, cost, _, metrics = self.quantiser(self.encoder.codec, images, batch["rows"])
        count = len(images)
        return Loss((error + cost).sum(), count), {"loss_pixels": Loss(error.sum(), count), **metrics}

    def after_step(self, done: int, steps: int) -> None:
        self.quantiser.after_step(self.encoder.codec, done, steps)
        self.encoder.ready.fill_(done == steps)

    def alarm(self) -> str | None:
        return self.quantiser.usage.alarm()

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, codec = self.encoder.images_of(batch["inputs"]), self.encoder.codec
        return {"original": images, "from codes": codec.images(codec.tokens(images))}
