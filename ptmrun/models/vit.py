"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929): transformers' ViTModel, sized for the data."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from ptmrun.batch import ImageSpec
from ptmrun.errors import UserError
from ptmrun.models import base, library_format
from ptmrun.models.base import Family
from ptmrun.models.init_weights import xavier
from ptmrun.models.vit_block import tail

SIZES = {  # width, blocks, heads, wanted patches per side
    "micro": (96, 3, 3, 4),
    "mini": (192, 6, 3, 8),
    "tiny": (192, 12, 3, 14),
    "small": (384, 12, 6, 14),
    "base": (768, 12, 12, 14),
    "large": (1024, 24, 16, 14),
}
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # in a folder's config.json
PUBLISHED = {
    "vit-tiny": "WinKawaks/vit-tiny-patch16-224",
    "vit-small": "WinKawaks/vit-small-patch16-224",
    "vit-base": "google/vit-base-patch16-224-in21k",
    "vit-large": "google/vit-large-patch16-224-in21k",
}
AS_PUBLISHED = {"size": "base", "patch": 16}
NORMALISED = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)  # means of the channels and deviations of published weights


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why). Raises UserError when the patch does not divide the image."""
    size = spec.size
    notes = []
    name = options.size
    if name == "auto":
        name = "micro" if size <= 96 else "mini" if size <= 128 else "tiny"
        width, depth = SIZES[name][:2]
        notes.append(f"model.size={name}: width {width}, {depth} blocks, for images of {size}x{size}")
    fits = [p for p in range(2, size // 2 + 1) if size % p == 0]
    if not fits:
        raise UserError(f"dataset.image_size={size}: cannot be cut into patches; choose an even size")
    patch = options.patch
    if patch == "auto":
        patch = min(fits, key=lambda p: abs(size / p - SIZES[name][3]))
        notes.append(
            f"model.patch={patch}: {size // patch}x{size // patch} patches (ImageNet's 16 would leave {size // 16}x{size // 16})"
        )
    if patch not in fits:
        raise UserError(f"model.patch={patch}: expected a divisor of the image's side {size}: {', '.join(map(str, fits))}")
    return {"size": name, "patch": patch}, notes


def fitting(options: Any, size: int) -> int:
    """The side nearest to `size` that patches of a given size divide, at least two of them."""
    return size if options.patch == "auto" else options.patch * max(2, round(size / options.patch))


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options."""
    size, channels = spec
    width, depth, heads, _ = SIZES[options.size]
    return Encoder(
        ViTConfig(
            image_size=size,
            patch_size=options.patch,
            num_channels=channels,
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_dropout_prob=options.dropout,
            attn_implementation=attention,
        ),
        options.pool,
        f"vit-{options.size}",
    )


TIMM = {  # timm's names of parameters (patterns) -> the library's
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"blocks\.(\d+)\.norm1\.(.*)": r"layers.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(.*)": r"layers.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.attn\.qkv\.(.*)": r"layers.\1.attention.qkv.\2",
    r"blocks\.(\d+)\.attn\.proj\.(.*)": r"layers.\1.attention.o_proj.\2",
    r"blocks\.(\d+)\.mlp\.(.*)": r"layers.\1.mlp.\2",
    r"norm\.(.*)": r"layernorm.\1",
}


def rescaled(weight: Tensor, patch: int) -> Tensor:
    """Patch embeddings [D, C, p, p] for patches of another side: one that is scaled up (bilinear) gives what it gave before, one
    scaled down what is nearest to that over all patches (FlexiViT: Beyer et al. 2023, arXiv:2212.08013, section 3.4)."""
    side = weight.shape[-1]
    pixels = torch.eye(side * side, dtype=torch.float64).view(-1, 1, side, side)
    scaled = F.interpolate(pixels, (patch, patch), mode="bilinear", antialias=True).flatten(1)  # [p * p, patch * patch]
    return (weight.flatten(2).double() @ torch.linalg.pinv(scaled).T).unflatten(2, (patch, patch)).to(weight.dtype)


def positions_for(value: Tensor, grid: int) -> tuple[Tensor, list[str]]:
    """Position embeddings [1, 1 + N, D] for a grid of patches, bicubic, the class token's kept (Dosovitskiy et al. 2021, section
    3.2); and notes on it."""
    side = math.isqrt(max(0, value.shape[1] - 1))
    if side in (0, grid) or side**2 + 1 != value.shape[1]:
        return value, []
    old = value[:, 1:].float().transpose(1, 2).unflatten(2, (side, side))
    new = F.interpolate(old, (grid, grid), mode="bicubic", align_corners=False)
    places = torch.cat([value[:, :1], new.flatten(2).transpose(1, 2).to(value.dtype)], 1)
    return places, [f"position embeddings: from {side}x{side} to {grid}x{grid} patches, bicubic"]


def patches_for(value: Tensor, channels: int, patch: int) -> tuple[Tensor, list[str]]:
    """Patch embeddings [D, C, p, p] for images of other channels and patches of another side, and notes on it. Those of gray
    become those of three equal channels and give the same; those of colour are summed; for other sides see `rescaled`."""
    notes = []
    if (value.shape[1], channels) == (1, 3):
        value = value.expand(-1, 3, -1, -1) / 3
        notes.append("patch embeddings: from gray to colour, a third for each channel")
    elif (value.shape[1], channels) == (3, 1):
        value = value.sum(1, keepdim=True)
        notes.append("patch embeddings: from colour to gray, the sum of the channels")
    if (side := value.shape[2]) != patch and side == value.shape[3]:
        value = rescaled(value, patch)
        notes.append(f"patch embeddings: from {side}x{side} to {patch}x{patch} pixels, pseudo-inverse")
    return value, notes


def rollout(blocks: tuple[Tensor, ...]) -> Tensor:
    """How much each token flows into each: attention of every block [B, heads, T, T] -> [B, T, T]. Of every block the mean of the
    heads, with half of each token's weight on itself for the residual connection; multiplied over the blocks (Abnar & Zuidema
    2020, arXiv:2005.00928)."""
    same = torch.eye(blocks[0].shape[-1], device=blocks[0].device)
    flow = same.expand(len(blocks[0]), -1, -1)
    for weights in blocks:
        flow = (weights.float().mean(1) + same) / 2 @ flow
    return flow


class Encoder(base.Encoder):
    """ViTModel taken apart, so that an objective can leave patches out or replace them."""

    patch: int
    attends = True

    names: Mapping[str, str] = TIMM
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attention\.(k_proj|v_proj)",
        "attention": r".*\.attention\.o_proj",
        "feed_forward": r".*\.mlp\.fc2",
    }

    def __init__(self, config: ViTConfig, pool: str, kind: str):
        super().__init__()
        self.pool, self.kind = pool, kind
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.patch, self.channels = config.patch_size, config.num_channels
        self.grid = config.image_size // config.patch_size
        self.vit = ViTModel(config, add_pooling_layer=False)
        xavier(self.vit)
        with torch.no_grad():  # like a linear layer, and fixed sines as the first positions, as MAE does
            weight = self.vit.embeddings.patch_embeddings.projection.weight
            nn.init.xavier_uniform_(weight.view(len(weight), -1))
            sines = build_2d_sinusoidal_position_embedding(self.grid, self.grid, self.width, cls_token=True)
            self.vit.embeddings.position_embeddings.copy_(sines[None])

    @property
    def positions(self) -> Tensor:
        """Position embeddings of the patches, [1, N, D]."""
        return self.vit.embeddings.position_embeddings[:, 1:]

    def embed(self, images: Tensor) -> Tensor:
        """Patch embeddings without positions: [B, C, S, S] -> [B, N, D]."""
        return self.vit.embeddings.patch_embeddings(images)

    def encode(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Any number of patch tokens, [B, n, D] -> [B, 1 + n, D], the class token first; or only the `last` ones."""
        embeddings = self.vit.embeddings
        first = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(tokens.shape[0], -1, -1)
        hidden = embeddings.dropout(torch.cat([first, tokens], 1))
        for layer in self.vit.layers[:-1]:
            hidden = layer(hidden)
        layer = self.vit.layers[-1]
        return self.vit.layernorm(tail(layer, hidden, last) if last else layer(hidden))

    def features(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, D]: the mean of the patch tokens, or the class token."""
        hidden = self.encode(self.embed(images) + self.positions)
        return hidden[:, 1:].mean(1) if self.pool == "mean" else hidden[:, 0]

    def local_features(self, images: Tensor) -> Tensor:
        """Of each patch: [B, C, S, S] -> [B, N, D]."""
        return self.encode(self.embed(images) + self.positions)[:, 1:]

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if "embeddings." in name:
            return 0
        layer = re.search(r"vit\.layers\.(\d+)\.", name)
        return int(layer[1]) + 1 if layer else self.depth + 1

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """How much each patch flows into the features, by `rollout`, the mean of the tokens that `features` pools:
        [B, C, S, S] -> [B, grid, grid]."""
        used = self.vit.config._attn_implementation
        self.vit.set_attn_implementation("eager")
        blocks = self.vit(images, output_attentions=True).attentions
        self.vit.set_attn_implementation(used)
        flow = rollout(blocks)
        pooled = flow[:, 1:] if self.pool == "mean" else flow[:, :1]
        return pooled[:, :, 1:].mean(1).unflatten(1, (self.grid, self.grid))

    def save(self, folder: Path, mean: list[float], std: list[float]) -> None:
        """A folder that `transformers.ViTModel.from_pretrained` and `AutoImageProcessor` read; replaced as a whole."""
        library_format.save(self.vit, folder, {}, self.preprocessing(mean, std))

    def preprocessing(self, mean: list[float], std: list[float]) -> dict[str, Any]:
        """What becomes of an image before it is the network's input."""
        return library_format.processor(self.vit.config.image_size, mean, std)

    why_no_classifier = "transformers' ViT classifies by its class token, model.pool=cls"

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(transformers' own classifier of these weights, {}); None where the patches' mean is what is classified."""
        if self.pool == "mean" or task != "classes":
            return None
        return library_format.with_head(self.vit, ViTForImageClassification, head, classes, self.vit.config.image_size), {}

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input."""
        return images

    def load(self, folder: Path) -> None:
        """Also weights that were trained on images of another size or colour, see `adjusted`."""
        library_format.load(self.vit, folder, self.adjusted(library_format.tensors_of(folder))[0], add_pooling_layer=False)

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights that were trained on images of another size or colour, as this encoder takes them, and notes on what changed:
        see `positions_for` and `patches_for`."""
        changed, notes = dict(tensors), list[str]()
        for name, value in tensors.items():
            more: list[str] = []
            if name.endswith("embeddings.position_embeddings") and value.ndim == 3:
                changed[name], more = positions_for(value, self.grid)
            elif name.endswith("patch_embeddings.projection.weight") and value.ndim == 4:
                changed[name], more = patches_for(value, self.channels, self.patch)
            notes += more
        return changed, notes

    @property
    def net(self) -> ViTModel:
        """The library's network."""
        return self.vit


FAMILY = Family(
    resolve=resolve,
    build=build,
    published=PUBLISHED,
    as_published=AS_PUBLISHED,
    shape=SHAPE,
    normalised=NORMALISED,
    sizes=SIZES,
    fitting=fitting,
)
