"""Masked autoencoder (He et al. 2022, arXiv:2111.06377); its target may be MaskFeat's (Wei et al. 2022, arXiv:2112.09133).

The encoder sees the visible patches only; transformers' ViTMAEDecoder sees all positions and predicts the hidden ones.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from ptmrun.loss import Loss
from ptmrun.models.initial import xavier
from ptmrun.objectives.patches import hidden_count, hog, normalised, patchify, unpatchify


class Objective(nn.Module):
    """`options`: mask_ratio, target (normalised | pixels | hog), decoder_width (share of the encoder's), decoder_depth."""

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.target = encoder, options.target
        self.patches = encoder.grid**2
        self.visible = self.patches - hidden_count(self.patches, options.mask_ratio)
        heads = max(1, round(options.decoder_width * encoder.width / 32))
        width = 32 * heads
        config = ViTMAEConfig(
            image_size=encoder.grid * encoder.patch,
            patch_size=encoder.patch,
            num_channels=encoder.channels,
            hidden_size=encoder.width,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=options.decoder_depth,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * width,
            attn_implementation=encoder.vit.config._attn_implementation,
        )
        self.decoder = ViTMAEDecoder(config, self.patches)
        xavier(self.decoder)
        if self.target == "hog":
            # decoder_pred keeps predicting pixels, for the pictures; it learns from the decoder but does not teach it
            self.head = nn.Linear(width, 4 * 9 * encoder.channels)
            xavier(self.head)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: images [B, C, S, S], rows. The loss is the squared error, mean over a patch's values, over hidden patches."""
        images = batch["images"]
        restore = self.shuffle(batch["rows"].uniform("mask", self.patches).to(images.device))
        hidden = (restore >= self.visible).float()
        decoded = self.decode(images, restore)
        count = int(hidden.shape[0] * (self.patches - self.visible))
        pixels = patchify(images, self.encoder.patch)
        if self.target != "hog":
            wanted = normalised(pixels) if self.target == "normalised" else pixels
            return Loss(self.error(self.decoder.decoder_pred(decoded), wanted, hidden), count), {}
        drawn = self.error(self.decoder.decoder_pred(decoded.detach()), normalised(pixels), hidden)
        learned = self.error(self.head(decoded), hog(images, self.encoder.grid), hidden)
        return Loss(learned + drawn, count), {"loss_hog": Loss(learned, count), "loss_pixels": Loss(drawn, count)}

    initial_within = 8.0  # random decoders give 1.8 to 7.1 times the initial loss

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of zeros as the answer: 1 for patches scaled to variance 1, and less where flat patches have nothing to scale."""
        images = batch["images"]
        pixels = patchify(images, self.encoder.patch)
        targets = [pixels if self.target == "pixels" else normalised(pixels)]
        if self.target == "hog":
            targets.append(hog(images, self.encoder.grid))
        hidden = self.shuffle(batch["rows"].uniform("mask", self.patches).to(images.device)) >= self.visible
        return sum(float(wanted.square().mean(-1)[hidden].mean()) for wanted in targets)

    @staticmethod
    def error(predicted: Tensor, wanted: Tensor, hidden: Tensor) -> Tensor:
        return ((predicted.float() - wanted).square().mean(-1) * hidden).sum()

    @staticmethod
    def shuffle(noise: Tensor) -> Tensor:
        """Noise [B, N] -> each patch's rank [B, N]: the patches with the lowest ranks stay visible."""
        return noise.argsort(1).argsort(1)

    def decode(self, images: Tensor, restore: Tensor) -> Tensor:
        """The decoder's output for every patch, [B, N, decoder width]."""
        tokens = self.encoder.embed(images) + self.encoder.positions
        keep = restore.argsort(1)[:, : self.visible]
        encoded = self.encoder.encode(tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1])))
        return self.everywhere(encoded, restore)

    def everywhere(self, encoded: Tensor, restore: Tensor) -> Tensor:
        """The decoder's layers without its prediction head (ViTMAEDecoder.forward up to decoder_pred)."""
        decoder = self.decoder
        hidden = decoder.decoder_embed(encoded)
        filled = decoder.mask_token.to(hidden.dtype).expand(len(hidden), self.patches - self.visible, -1)
        order = restore[..., None].expand(-1, -1, hidden.shape[-1])
        tokens = torch.cat([hidden[:, 1:], filled], 1).gather(1, order)
        hidden = torch.cat([hidden[:, :1], tokens], 1) + decoder.decoder_pos_embed
        for layer in decoder.decoder_layers:
            hidden = layer(hidden)
        return decoder.decoder_norm(hidden)[:, 1:]

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Original, masked and reconstructed images; what was visible is kept in the reconstruction."""
        images, patch = batch["images"], self.encoder.patch
        restore = self.shuffle(batch["rows"].uniform("mask", self.patches).to(images.device))
        hidden = (restore >= self.visible)[..., None]
        pixels = patchify(images, patch)
        predicted = self.decoder.decoder_pred(self.decode(images, restore)).float()
        if self.target != "pixels":  # back from each patch's own scale
            predicted = predicted * (pixels.var(-1, keepdim=True) + 1e-6).sqrt() + pixels.mean(-1, keepdim=True)
        gray = pixels.mean((1, 2), keepdim=True)
        back = [torch.where(hidden, filled, pixels) for filled in (gray, predicted)]
        masked, rebuilt = (unpatchify(x, patch, self.encoder.channels) for x in back)
        return {"original": images, "masked": masked, "reconstructed": rebuilt}
