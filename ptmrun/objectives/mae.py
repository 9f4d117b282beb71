"""Masked autoencoder (He et al. 2022, arXiv:2111.06377); its target may be MaskFeat's (Wei et al. 2022, arXiv:2112.09133).

The encoder sees the visible patches only; transformers' ViTMAEDecoder sees all positions and predicts the hidden ones.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from ptmrun.loss import Loss
from ptmrun.models.init_weights import near_zero, xavier
from ptmrun.models.vit_block import tail
from ptmrun.objectives import base
from ptmrun.objectives.patches import hidden_count, hog, normalised, patchify, pick, unpatchify


class Objective(base.Objective):
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
        near_zero(self.decoder.decoder_pred)
        if self.target == "hog":
            # decoder_pred keeps predicting pixels, for the pictures; it learns from the decoder but does not teach it
            self.head = nn.Linear(width, 4 * 9 * encoder.channels)
            near_zero(self.head)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], rows. The loss is the squared error, mean over a patch's values, over hidden patches."""
        images = batch["inputs"]
        order = self.order(batch)
        hidden = order[:, self.visible :]
        decoded = self.decode(images, order)
        count = hidden.numel()
        pixels = pick(patchify(images, self.encoder.patch), hidden)
        if self.target != "hog":
            wanted = normalised(pixels) if self.target == "normalised" else pixels
            return Loss(self.error(self.decoder.decoder_pred(decoded), wanted), count), {}
        drawn = self.error(self.decoder.decoder_pred(decoded.detach()), normalised(pixels))
        learned = self.error(self.head(decoded), pick(hog(images, self.encoder.grid), hidden))
        return Loss(learned + drawn, count), {"loss_hog": Loss(learned, count), "loss_pixels": Loss(drawn, count)}

    initial_within = 1.5  # random decoders give 1.03 to 1.15 times the initial loss

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of zeros as the answer: 1 for patches scaled to variance 1, and less where flat patches have nothing to scale."""
        images = batch["inputs"]
        pixels = patchify(images, self.encoder.patch)
        targets = [pixels if self.target == "pixels" else normalised(pixels)]
        if self.target == "hog":
            targets.append(hog(images, self.encoder.grid))
        hidden = self.order(batch)[:, self.visible :]
        return sum(float(pick(wanted, hidden).square().mean()) for wanted in targets)

    @staticmethod
    def error(predicted: Tensor, wanted: Tensor) -> Tensor:
        return (predicted.float() - wanted).square().mean(-1).sum()

    def order(self, batch: dict[str, Any]) -> Tensor:
        """The patches of each image in random order, [B, N]: the first `visible` of them stay visible."""
        return batch["rows"].uniform("mask", self.patches).to(batch["inputs"].device).argsort(1)

    def decode(self, images: Tensor, order: Tensor) -> Tensor:
        """The decoder's output for the hidden patches, order[:, visible:]: [B, hidden, decoder width].

        ViTMAEDecoder.forward up to decoder_pred, but the tokens stay in the random order, each with the position of its patch,
        and the last block computes outputs for the hidden ones only: the loss needs no others.
        """
        decoder, count = self.decoder, self.patches - self.visible
        tokens = self.encoder.embed(images) + self.encoder.positions
        seen = decoder.decoder_embed(self.encoder.encode(pick(tokens, order[:, : self.visible])))
        places = decoder.decoder_pos_embed.expand(len(images), -1, -1)
        places = torch.cat([places[:, :1], pick(places[:, 1:], order)], 1)
        hidden = torch.cat([seen, decoder.mask_token.to(seen.dtype).expand(len(images), count, -1)], 1) + places
        for layer in decoder.decoder_layers[:-1]:
            hidden = layer(hidden)
        return decoder.decoder_norm(tail(decoder.decoder_layers[-1], hidden, count))

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Original, masked and reconstructed images; what was visible is kept in the reconstruction."""
        images, patch = batch["inputs"], self.encoder.patch
        order = self.order(batch)
        pixels = patchify(images, patch)
        hidden = order[:, self.visible :, None].expand(-1, -1, pixels.shape[-1])
        predicted = self.decoder.decoder_pred(self.decode(images, order)).float()
        if self.target != "pixels":  # back from each patch's own scale
            wanted = pixels.gather(1, hidden)
            predicted = predicted * (wanted.var(-1, keepdim=True) + 1e-6).sqrt() + wanted.mean(-1, keepdim=True)
        gray = pixels.mean((1, 2), keepdim=True).expand_as(pixels)
        back = [pixels.scatter(1, hidden, filled) for filled in (gray, predicted)]
        masked, rebuilt = (unpatchify(x, patch, self.encoder.channels) for x in back)
        return {"original": images, "masked": masked, "reconstructed": rebuilt}
