"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030): transformers' SwinModel, smaller for small images."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import SwinConfig, SwinForImageClassification, SwinModel

from ptmrun.batch import ImageSpec
from ptmrun.errors import UserError
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

SIZES = {  # blocks a stage, heads a stage, width of the first stage, window
    "micro": ((2, 2, 2), (3, 6, 12), 48, 4),
    "tiny": ((2, 2, 6, 2), (3, 6, 12, 24), 96, 7),
    "small": ((2, 2, 18, 2), (3, 6, 12, 24), 96, 7),
    "base": ((2, 2, 18, 2), (4, 8, 16, 32), 128, 7),
}
PUBLISHED = {
    "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "swin-small": "microsoft/swin-small-patch4-window7-224",
    "swin-base": "microsoft/swin-base-patch4-window7-224",
}
SHAPE = ("depths", "num_heads", "embed_dim", "window_size")  # in a folder's config.json
AS_PUBLISHED = {"size": "tiny", "patch": 4}


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    """Every stage must hold whole windows: the first has a multiple of window * 2 ** (stages - 1) patches a side."""
    size = spec.size
    notes, name = [], options.size
    if name == "auto":
        name = "micro" if size <= 128 else "tiny"
        notes.append(f"model.size={name}: for images of {size}x{size} (published: tiny, small, base)")
    depths, _, _, window = SIZES[name]
    if (patch := options.patch) == "auto":
        patch = max(2, round(size / (window * 2 ** (len(depths) - 1)))) if name == "micro" else 4
        notes.append(f"model.patch={patch} (published: 4)")
    unit = patch * window * 2 ** (len(depths) - 1)
    side = {"auto": unit * max(1, round(size / unit)), "none": size}.get(options.resize, options.resize)
    if side % unit:
        raise UserError(f"model.resize={options.resize}: expected a multiple of {unit}, so that windows of {window}x{window} fit")
    if options.resize == "auto" and side != size:
        notes.append(f"model.resize={side}: images are scaled, so that windows of {window}x{window} fit every stage")
    return {"size": name, "patch": patch, "resize": side}, notes


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size, attention)


TIMM = {  # timm's names of parameters (patterns) -> the library's, which counts what leads to a stage to the one before
    r"patch_embed\.proj\.(.*)": r"embeddings.patch_embeddings.projection.\1",
    r"patch_embed\.norm\.(.*)": r"embeddings.norm.\1",
    r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(.*)": r"encoder.layers.\1.blocks.\2.layernorm_before.\3",
    r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(.*)": r"encoder.layers.\1.blocks.\2.layernorm_after.\3",
    r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(.*)": r"encoder.layers.\1.blocks.\2.attention.qkv.\3",
    r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(.*)": r"encoder.layers.\1.blocks.\2.attention.o_proj.\3",
    r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(relative_position_bias_table)": (
        r"encoder.layers.\1.blocks.\2.attention.relative_position_bias.\3"
    ),
    r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.(.*)": r"encoder.layers.\1.blocks.\2.mlp.\3",
    r"layers\.1\.downsample\.(.*)": r"encoder.layers.0.downsample.\1",
    r"layers\.2\.downsample\.(.*)": r"encoder.layers.1.downsample.\1",
    r"layers\.3\.downsample\.(.*)": r"encoder.layers.2.downsample.\1",
    r"norm\.(.*)": r"layernorm.\1",
}


class Encoder(map_encoder.Encoder):
    whole = SwinForImageClassification
    names: Mapping[str, str] = TIMM
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attention\.(k_proj|v_proj)",
        "attention": r".*\.attention\.o_proj",
        "feed_forward": r".*\.mlp\.fc2",
    }

    def __init__(self, options: Any, channels: int, size: int, attention: str):
        self.kind = f"swin-{options.size}"
        depths, heads, width, window = SIZES[options.size]
        config = SwinConfig(
            image_size=options.resize,
            patch_size=options.patch,
            embed_dim=width,
            depths=depths,
            num_heads=heads,
            window_size=window,
            drop_path_rate=options.drop_path,
            attn_implementation=attention,
        )
        blocks = [
            (f"encoder.layers.{stage}.blocks.{i}", *([f"encoder.layers.{stage}.downsample"] if i == n - 1 else []))
            for stage, n in enumerate(depths)
            for i in range(n)
        ]
        super().__init__(SwinModel(config), config.hidden_size, ["embeddings", *blocks], channels, size, options.resize)

    def maps(self, images: Tensor) -> Tensor:
        side = self.resize // (self.net.config.patch_size * 2 ** (self.net.config.num_layers - 1))
        return self.net(images).last_hidden_state.transpose(1, 2).unflatten(2, (side, side))

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Of each side that a stage ends with, the last map; after the last stage the normalised one."""
        made = self.net(self.prepare(images), output_hidden_states=True)
        *before, last = made.reshaped_hidden_states
        by_side = {x.shape[-1]: x for x in before} | {last.shape[-1]: made.last_hidden_state.transpose(1, 2).view_as(last)}
        return [by_side[side] for side in sorted(by_side, reverse=True)]


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED, shape=SHAPE, sizes=SIZES)
