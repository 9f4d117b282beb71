"""SimMIM (Xie et al. 2022, arXiv:2111.09886): masked patches go through the whole encoder, a linear head predicts pixels (L1).

Encoders with patches get a mask token in place of a hidden patch's embedding; those with maps get a learned value in place of its
pixels, and the head (a 1x1 convolution and a pixel shuffle, as published for Swin) predicts from the last map.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.models.init_weights import near_zero
from ptmrun.objectives import base
from ptmrun.objectives.patches import hidden_count, patchify, pick, unpatchify

UNITS = 7  # hidden squares a side where the encoder has no patches (the paper: 32 pixels of 224)


class Objective(base.Objective):
    """`options`: mask_ratio."""

    collapse_hints = "another task.mask_ratio, a lower pretrain.lr, task=simclr for convolutional encoders"

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder
        self.tokens = encoder.patch is not None
        self.patch = encoder.patch if self.tokens else unit(encoder.side)
        self.patches = (encoder.grid if self.tokens else encoder.side // self.patch) ** 2
        self.hidden = hidden_count(self.patches, options.mask_ratio)
        if self.tokens:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
            head = nn.Linear(encoder.width, encoder.patch**2 * encoder.channels)
            near_zero(head)
            self.head: nn.Module = head
        else:
            self.mask_token = nn.Parameter(torch.zeros(1, encoder.channels, 1, 1))
            width, side = encoder.map_shape
            scale = -(-encoder.side // side)
            self.head = nn.Sequential(nn.Conv2d(width, scale**2 * encoder.channels, 1), nn.PixelShuffle(scale))
            for module in encoder.above_map:  # nothing here trains it
                module.requires_grad_(False)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], rows. The loss is the absolute error over hidden pixels."""
        images = batch["inputs"]
        hidden = self.mask(batch)
        predicted = self.predict(images, hidden)
        wanted = patchify(images, self.patch)[hidden].view_as(predicted)
        error = (predicted.float() - wanted).abs().mean(-1).sum()
        return Loss(error, len(images) * self.hidden), {}

    initial_within = 1.5  # random weights give 0.9 to 1.3 times the initial loss

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of the training images' mean as the answer."""
        pixels = patchify(batch["inputs"], self.patch)
        return float(pixels.abs().mean(-1)[self.mask(batch)].mean())

    def mask(self, batch: dict[str, Any]) -> Tensor:
        """Hidden patches, [B, N] bool."""
        noise = batch["rows"].uniform("mask", self.patches).to(batch["inputs"].device)
        return noise.argsort(1).argsort(1) >= self.patches - self.hidden

    def predict(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Pixels of the hidden patches, [B, hidden, patch * patch * C]; with tokens the last block computes nothing else."""
        if self.tokens:
            tokens = torch.where(hidden[..., None], self.mask_token.to(images.dtype), self.encoder.embed(images))
            order = hidden.byte().argsort(dim=1, stable=True)  # the hidden ones last
            return self.head(self.encoder.encode(pick(tokens + self.encoder.positions, order), last=self.hidden))
        side = images.shape[-1]
        squares = hidden.unflatten(1, (side // self.patch, -1)).repeat_interleave(self.patch, 1).repeat_interleave(self.patch, 2)
        maps = self.encoder.feature_map(torch.where(squares[:, None], self.mask_token.to(images.dtype), images))
        pixels = self.head(maps)
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels.float(), (side, side), mode="bilinear", align_corners=False)
        return patchify(pixels, self.patch)[hidden].unflatten(0, (-1, self.hidden))

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Original, masked and reconstructed images; what was visible is kept in the reconstruction."""
        images, patch = batch["inputs"], self.patch
        hidden = self.mask(batch)
        pixels = patchify(images, patch)
        gray = torch.where(hidden[..., None], pixels.mean((1, 2), keepdim=True), pixels)
        filled = pixels.masked_scatter(hidden[..., None], self.predict(images, hidden).to(pixels.dtype))
        masked, rebuilt = (unpatchify(x, patch, self.encoder.channels) for x in (gray, filled))
        return {"original": images, "masked": masked, "reconstructed": rebuilt}


def unit(side: int) -> int:
    """The divisor of an image's side that is nearest to a seventh of it."""
    return min((p for p in range(1, side // 2 + 1) if side % p == 0), key=lambda p: abs(p - side / UNITS))
