"""DALL-E (Ramesh et al. 2021, arXiv:2102.12092): codes of images are learned by vector quantisation, then captions and codes
as one sequence, token by token, and the decoder goes on. With `init=` a run that has learned codes these stay as they are.
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
    """`options`: codec_share (of the steps, which codes are learned in), text (weight of a caption's tokens), drop, and those of
    Quantiser."""

    draws = judged = True
    collapse_hints = "a lower pretrain.lr, a lower task.restart, fewer model.codes"

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.options = encoder, options
        self.trained = bool(encoder.ready)  # the codec, before
        encoder.codec.requires_grad_(not self.trained)
        self.quantiser = Quantiser(encoder.codec, options)
        self.initial_nats = math.log(encoder.gpt.config.vocab_size)
        self.later = () if self.trained else ("encoder.gpt.",)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (images, or with captions), rows. The loss is the codec's, as in vq, and the cross-entropy in nats: of a
        caption's tokens, the mean over them, and of an image's codes, by their weights; that of equal probabilities as long as
        codes are learned."""
        encoder, inputs = self.encoder, batch["inputs"]
        images = encoder.images_of(inputs)
        count = len(images)
        last = encoder.length - 1  # the first code is predicted by the caption's last place
        known = bool(encoder.ready)
        if self.trained:
            with torch.no_grad():
                codes = encoder.codec.tokens(images)
            codec, metrics = images.new_zeros(count), {}
        else:
            error, cost, codes, metrics = self.quantiser(encoder.codec, images, batch["rows"], fixed=known)
            codec, metrics = error + cost, {"loss_pixels": Loss(error.sum(), count), **metrics}
        if self.training and not known:
            return Loss((codec + self.initial_nats).sum(), count), metrics
        captions, real = encoder.captions_of(inputs)
        if self.training:
            nothing, start = encoder.no_caption(count, images.device)
            dropped = (batch["rows"].uniform("drop") < self.options.drop).to(images.device)[:, None]
            captions, real = torch.where(dropped, nothing, captions), torch.where(dropped, start, real)
        logits, wanted = encoder.logits(captions, codes)
        nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)
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
        ready = self.encoder.ready
        if not ready:
            self.quantiser.after_step(self.encoder.codec, done, self.options.codec_share * steps)
            self.begin_at(done / steps)
        if done == steps:
            ready.fill_(2)

    def begin_at(self, progress: float) -> None:
        if progress >= self.options.codec_share:
            self.encoder.ready.clamp_(min=1)

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
