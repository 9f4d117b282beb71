"""BiT, Big Transfer (Kolesnikov et al. 2020, arXiv:1912.11370): transformers' BitModel, a ResNet-v2 with group normalisation and
weight standardisation."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import BitConfig, BitForImageClassification, BitModel

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

LEAST = 56  # the side that leaves 2x2 positions
SIZES = {  # blocks a stage, channels a stage, channels of the stem
    "micro": ((1, 1, 1, 1), (128, 256, 512, 1024), 32),
    "r50x1": ((3, 4, 6, 3), (256, 512, 1024, 2048), 64),
    "r101x1": ((3, 4, 23, 3), (256, 512, 1024, 2048), 64),
}
PUBLISHED = {"bit-r50x1": "google/bit-50"}
SHAPE = ("depths", "hidden_sizes", "embedding_size")  # in a folder's config.json
AS_PUBLISHED = {"size": "r50x1"}
NORMALISED = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)  # means of the channels and deviations of published weights


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    changes, notes = map_encoder.resized(options, size, LEAST, "so that its stem and stages leave 2x2 positions, not one")
    name = options.size
    if name == "auto":
        name = "micro" if size <= 128 else "r50x1"
        notes.insert(0, f"model.size={name}: for images of {size}x{size} (published: r50x1, r101x1)")
    return {**changes, "size": name}, notes


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


TIMM = {  # timm's names of parameters (patterns) -> the library's
    r"stem\.conv\.(.*)": r"embedder.convolution.\1",
    r"stages\.(\d+)\.blocks\.(.*)": r"encoder.stages.\1.layers.\2",
}


class Encoder(map_encoder.Encoder):
    whole = BitForImageClassification
    names: Mapping[str, str] = TIMM
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "feed_forward": r".*\.conv3",
    }

    def __init__(self, options: Any, channels: int, size: int):
        self.kind = f"bit-{options.size}"
        depths, widths, stem = SIZES[options.size]
        net = BitModel(BitConfig(depths=depths, hidden_sizes=widths, embedding_size=stem))
        blocks = [f"encoder.stages.{stage}.layers.{i}" for stage, n in enumerate(depths) for i in range(n)]
        super().__init__(net, widths[-1], ["embedder", *blocks], channels, size, options.resize)

    def maps(self, images: Tensor) -> Tensor:
        return self.net(images).last_hidden_state

    @property
    def cam_layers(self) -> list[nn.Module]:
        return [*self.net.encoder.stages[:-1], self.net.norm]


FAMILY = Family(
    resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED, shape=SHAPE, normalised=NORMALISED, sizes=SIZES
)
