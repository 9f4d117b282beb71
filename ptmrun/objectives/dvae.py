"""Discrete variational autoencoder, DALL-E's first stage (Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.2).

The logits of the codes are their cosines with what the encoder gives, times a scale that is learned; published: a linear layer.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.codes import Usage, at, gumbel_softmax, kl_to_uniform

SHARP = 10.0  # scale of the cosines at the beginning


class Objective(base.Objective):
    """`options`: first_temperature, temperature (reached after a share `anneal` of the steps), kl (reached after `kl_warmup`)."""

    judged = True
    collapse_hints = "a lower task.kl, a higher task.temperature, fewer model.codes"

    progress: Tensor

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.options = encoder, options
        encoder.gpt.requires_grad_(False)
        self.usage = Usage(encoder.codec.count)
        self.scale = nn.Parameter(torch.tensor(math.log(SHARP)))
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (images, or with captions), rows. The loss is the squared error, mean over values, and `kl` times the
        divergence, mean over places. When it is judged, codes are the likeliest."""
        images, codec = self.encoder.images_of(batch["inputs"]), self.encoder.codec
        logits = codec.cosines(codec.vectors(images)) * self.scale.exp()
        tokens = logits.argmax(-1)
        if self.training:
            self.usage.count(tokens)
            noise = batch["rows"].uniform("gumbel", *logits.shape[1:]).to(images.device)
            chosen = gumbel_softmax(logits, noise, self.temperature())
        else:
            chosen = F.one_hot(tokens, codec.count).to(logits.dtype)
        error = (codec.decode(chosen @ codec.book).float() - images).square().mean((1, 2, 3))
        divergence = kl_to_uniform(logits).mean(1)
        count = len(images)
        metrics = {"loss_pixels": Loss(error.sum(), count), "kl": Loss(divergence.sum(), count), **self.usage.metrics()}
        return Loss((error + self.weight() * divergence).sum(), count), metrics

    def temperature(self) -> Tensor:
        return at(self.progress / self.options.anneal, self.options.first_temperature, self.options.temperature)

    def weight(self) -> Tensor:
        return self.options.kl * (self.progress / self.options.kl_warmup).clamp(max=1)

    def after_step(self, done: int, steps: int) -> None:
        self.usage.after_step()
        self.progress.fill_(done / steps)
        self.encoder.ready.fill_(done == steps)

    def alarm(self) -> str | None:
        return self.usage.alarm()

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        images, codec = self.encoder.images_of(batch["inputs"]), self.encoder.codec
        return {"original": images, "from codes": codec.images(codec.tokens(images))}
