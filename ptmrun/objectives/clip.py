"""CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343): an image and its caption agree,
and differ from all others of the batch. Where a caption fits several images of the batch, they share the target."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base

LARGEST = math.log(100)  # of the scale's logarithm
SIGLIP = (math.log(10), -10.0)  # its first scale and bias
MEMORY = 0.98  # of the losses, from a step to the next: 200 steps at the loss of the beginning give the alarm
STUCK = 0.98  # of the loss of embeddings that do not tell pairs apart


class Objective(base.Objective):
    """It has no heads of its own: projections, scale and bias belong to the encoder. `options`: loss (clip or siglip)."""

    compares = True
    collapse_hints = "a lower pretrain.lr, a larger pretrain.batch_size, captions that differ more"

    recent: Tensor
    now: Tensor

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.pairwise = encoder, options.loss == "siglip"
        if self.pairwise and float(encoder.bias.detach()) == 0:  # not trained with it yet
            for parameter, value in zip((encoder.scale, encoder.bias), SIGLIP, strict=True):
                torch.nn.init.constant_(parameter, value)
        encoder.bias.requires_grad_(self.pairwise)
        self.register_buffer("recent", torch.zeros(()))  # the loss as a share of that of equal embeddings, lately
        self.register_buffer("now", torch.zeros(()))  # in this step

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Pair), same [B]: equal numbers where a caption fits the other image too. The mean over the pairs."""
        return self.compare(self.embed(batch), [batch])

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Projections of images and captions, [B, 2, projection]."""
        pair = batch["inputs"]
        return torch.stack([self.encoder.image_embeddings(pair.images), self.encoder.text_embeddings(pair.tokens)], 1)

    def compare(self, embedded: Tensor, micros: list[dict[str, Any]]) -> tuple[Loss, dict[str, Loss]]:
        """In float32 whatever autocast says: similarities times a large scale need the digits."""
        count, numbers = len(embedded), torch.cat([micro["same"] for micro in micros])
        fits = numbers[:, None] == numbers
        with torch.autocast(embedded.device.type, enabled=False):
            images, texts = F.normalize(embedded.to(torch.promote_types(embedded.dtype, torch.float32)), dim=-1).unbind(1)
            logits = self.encoder.scale.exp() * images @ texts.T
            loss = siglip(logits + self.encoder.bias, fits) if self.pairwise else clip(logits, fits)
        if self.training and count > 1:
            self.now.fill_(loss.detach() / count / math.log(count))
        first = [fits.gather(dim, logits.argmax(dim, keepdim=True)).sum() for dim in (0, 1)]
        shown = {"text_first": Loss(first[1], count), "image_first": Loss(first[0], count)}
        return Loss(loss, count), {**shown, "scale": Loss(self.encoder.scale.detach().exp(), 1)}

    def after_step(self, done: int, steps: int) -> None:
        with torch.no_grad():
            self.encoder.scale.clamp_(max=LARGEST)
            self.recent.lerp_(self.now, 1 - MEMORY)

    def alarm(self) -> str | None:
        if self.pairwise or float(self.recent) < STUCK:
            return None
        return "the loss stays that of embeddings which do not tell the pairs of a batch apart (the logarithm of its size)"

    def initial_loss(self, batch: dict[str, Any]) -> float | None:
        """Of embeddings that do not tell pairs apart."""
        return None if self.pairwise else math.log(len(batch["ids"]))

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of clip the entropy of the targets."""
        shared = batch["same"].unique(return_inverse=True, return_counts=True)
        return 0.0 if self.pairwise else float(shared[2][shared[1]].log().mean())


def clip(logits: Tensor, fits: Tensor) -> Tensor:
    """The sum over pairs of the mean cross-entropy of both directions, each with equal targets for all that fit: logits and fits
    [B, B], images in rows."""
    targets = fits.to(logits.dtype)
    rows = (targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum()
    columns = (targets / targets.sum(0, keepdim=True) * logits.log_softmax(0)).sum()
    return -(rows + columns) / 2


def siglip(logits: Tensor, fits: Tensor) -> Tensor:
    """The sum over all B * B of the binary cross-entropy, whether they fit."""
    return -F.logsigmoid(torch.where(fits, logits, -logits)).sum()
