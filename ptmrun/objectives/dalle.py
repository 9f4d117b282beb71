"""DALL-E (Ramesh et al. 2021, arXiv:2102.12092): codes of images are learned by vector quantisation, captions and codes as one
sequence, token by token. Both are trained at once, each by its own loss; published one after the other, which is `init=` a run of
the first stage: its codes stay as they are.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.codes import Quantiser

SHOWN = 2  # pictures that are drawn of each caption


class Objective(base.Objective):
    """`options`: text (weight of a caption's tokens), drop, and those of Quantiser."""

    judged = True
    collapse_hints = "a lower pretrain.lr, a lower task.restart, fewer model.codes"

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.options = encoder, options
        self.trained = bool(encoder.ready)  # the codec, before
        encoder.codec.requires_grad_(not self.trained)
        self.quantiser = Quantiser(encoder.codec, options)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (images, or with captions), rows. The loss is the codec's, as in vq, and the cross-entropy in nats: of a
        caption's tokens, the mean over them, and of an image's codes, by their weights."""
        encoder, inputs = self.encoder, batch["inputs"]
        images = encoder.images_of(inputs)
        count = len(images)
        if self.trained:
            with torch.no_grad():
                codes = encoder.codec.tokens(images)
            codec, metrics = images.new_zeros(count), {}
        else:
            error, cost, codes, metrics = self.quantiser(encoder.codec, images, batch["rows"])
            codec, metrics = error + cost, {"loss_pixels": Loss(error.sum(), count), **metrics}
        captions, real = encoder.captions_of(inputs)
        if self.training:
            nothing, start = encoder.no_caption(count, images.device)
            dropped = (batch["rows"].uniform("drop") < self.options.drop).to(images.device)[:, None]
            captions, real = torch.where(dropped, nothing, captions), torch.where(dropped, start, real)
        logits, wanted = encoder.logits(captions, codes)
        nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
        last = encoder.length - 1  # the first code is predicted by the caption's last place
        real = real[:, 1:].float()
        text, image = (nats[:, :last] * real).sum(1), nats[:, last:]
        weight = self.options.text if last else 0.0
        both = weight * text / real.sum(1).clamp(min=1) + (1 - weight) * image.mean(1)
        right = (logits[:, last:].argmax(-1) == wanted[:, last:]).sum()
        metrics["bits_per_code"] = Loss(image.detach().sum() / math.log(2), image.numel())
        metrics["code_accuracy"] = Loss(right, image.numel())
        if last:
            metrics["bits_per_text_token"] = Loss(text.detach().sum() / math.log(2), real.sum())
        return Loss((codec + both).sum(), count), metrics

    def after_step(self, done: int, steps: int) -> None:
        if not self.trained:
            self.quantiser.after_step(self.encoder.codec, done, steps)
            self.encoder.ready.fill_(done == steps)

    def alarm(self) -> str | None:
        return self.quantiser.usage.alarm()

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Images, what their codes hold of them, and what is drawn of their captions."""
        encoder, inputs = self.encoder, batch["inputs"]
        images = encoder.images_of(inputs)
        shown = {"original": images, "from codes": encoder.codec.images(encoder.codec.tokens(images))}
        for i in range(1, SHOWN + 1):
            noise = batch["rows"].uniform(f"drawn {i}", encoder.draws).to(images.device)
            shown[f"drawn {i}"] = encoder.draw(noise, encoder.text_of(inputs))
        return shown
