"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545): transformers' ConvNextModel, smaller for small images."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, ConvNextModel

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

SIZES = {  # blocks a stage, channels a stage, initial layer scale (a small one needs long training)
    "micro": ((2, 2, 2), (48, 96, 192), 0.1),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 1e-6),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), 1e-6),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), 1e-6),
}
PUBLISHED = {
    "convnext-tiny": "facebook/convnext-tiny-224",
    "convnext-small": "facebook/convnext-small-224",
    "convnext-base": "facebook/convnext-base-224",
}
SHAPE = ("depths", "hidden_sizes")  # in a folder's config.json
AS_PUBLISHED = {"size": "tiny", "patch": 4}


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    notes, name, patch = [], options.size, options.patch
    if name == "auto":
        name = "micro" if size <= 128 else "tiny"
        notes.append(f"model.size={name}: for images of {size}x{size} (published: tiny, small, base)")
    if patch == "auto":
        patch = 4 if size > 128 else max(1, round(size / 16))
        notes.append(f"model.patch={patch}: {size // patch}x{size // patch} positions in the first stage (published: 4)")
    return {"size": name, "patch": patch}, notes


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


TIMM = {  # timm's names of parameters (patterns) -> the library's
    r"stem\.0\.(.*)": r"embeddings.patch_embeddings.\1",
    r"stem\.1\.(.*)": r"embeddings.layernorm.\1",
    r"stages\.(\d+)\.blocks\.(\d+)\.gamma": r"encoder.stages.\1.layers.\2.layer_scale_parameter",
    r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.*)": r"encoder.stages.\1.layers.\2.dwconv.\3",
    r"stages\.(\d+)\.blocks\.(\d+)\.norm\.(.*)": r"encoder.stages.\1.layers.\2.layernorm.\3",
    r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc(.*)": r"encoder.stages.\1.layers.\2.pwconv\3",
    r"stages\.(\d+)\.downsample\.(.*)": r"encoder.stages.\1.downsampling_layer.\2",
    r"head\.norm\.(.*)": r"layernorm.\1",
}


class Encoder(map_encoder.Encoder):
    whole = ConvNextForImageClassification
    layout = torch.channels_last
    names: Mapping[str, str] = TIMM
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "feed_forward": r".*\.pwconv2",
    }

    def __init__(self, options: Any, channels: int, size: int):
        self.kind = f"convnext-{options.size}"
        depths, widths, scale = SIZES[options.size]
        net = ConvNextModel(
            ConvNextConfig(
                depths=depths,
                hidden_sizes=widths,
                num_stages=len(depths),
                patch_size=options.patch,
                layer_scale_init_value=scale,
                drop_path_rate=options.drop_path,
                image_size=size,
            )
        )
        blocks = [
            (f"encoder.stages.{stage}.layers.{i}", *([f"encoder.stages.{stage}.downsampling_layer"] if i == 0 else []))
            for stage, n in enumerate(depths)
            for i in range(n)
        ]
        super().__init__(net, widths[-1], ["embeddings", *blocks], channels, size, size)

    def maps(self, images: Tensor) -> Tensor:
        return self.net(images).last_hidden_state

    def pooled(self, maps: Tensor) -> Tensor:
        return self.net.layernorm(maps.mean((2, 3)))

    @property
    def above_map(self) -> list[nn.Module]:
        return [self.net.layernorm]

    @property
    def cam_layers(self) -> list[nn.Module]:
        return list(self.net.encoder.stages)


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED, shape=SHAPE, sizes=SIZES)
