"""SimMIM (Xie et al. 2022, arXiv:2111.09886): mask tokens go through the whole encoder, a linear head predicts pixels (L1)."""

from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.loss import Loss
from ptmrun.objectives.patches import hidden_count, patchify, unpatchify


class Objective(nn.Module):
    """`options`: mask_ratio."""

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder
        self.patches = encoder.grid**2
        self.hidden = hidden_count(self.patches, options.mask_ratio)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(encoder.width, encoder.patch**2 * encoder.channels)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: images [B, C, S, S], rows. The loss is the absolute error over hidden pixels."""
        images = batch["images"]
        hidden = self.mask(batch)
        predicted = self.predict(images, hidden)
        error = ((predicted.float() - patchify(images, self.encoder.patch)).abs().mean(-1) * hidden).sum()
        return Loss(error, len(images) * self.hidden), {}

    initial_within = 1.5  # random weights give 0.9 to 1.3 times the initial loss

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of the training images' mean as the answer."""
        pixels = patchify(batch["images"], self.encoder.patch)
        return float(pixels.abs().mean(-1)[self.mask(batch)].mean())

    def mask(self, batch: dict[str, Any]) -> Tensor:
        """Hidden patches, [B, N] bool."""
        noise = batch["rows"].uniform("mask", self.patches).to(batch["images"].device)
        return noise.argsort(1).argsort(1) >= self.patches - self.hidden

    def predict(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Pixels of every patch, [B, N, patch * patch * C]."""
        tokens = torch.where(hidden[..., None], self.mask_token.to(images.dtype), self.encoder.embed(images))
        return self.head(self.encoder.encode(tokens + self.encoder.positions)[:, 1:])

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Original, masked and reconstructed images; what was visible is kept in the reconstruction."""
        images, patch = batch["images"], self.encoder.patch
        hidden = self.mask(batch)
        pixels = patchify(images, patch)
        gray = pixels.mean((1, 2), keepdim=True)
        back = [torch.where(hidden[..., None], filled, pixels) for filled in (gray, self.predict(images, hidden).float())]
        masked, rebuilt = (unpatchify(x, patch, self.encoder.channels) for x in back)
        return {"original": images, "masked": masked, "reconstructed": rebuilt}
