"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381): torchvision's; inverted residuals that leave few parameters to move."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

PUBLISHED = {"mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V2"}
OLDER = {  # torchvision's names of parameters (patterns), before blocks were nested -> now
    r"features\.1\.conv\.([01])\.(.*)": r"features.1.conv.0.\1.\2",
    r"features\.1\.conv\.3\.(.*)": r"features.1.conv.1.\1",
    r"features\.1\.conv\.4\.(.*)": r"features.1.conv.2.\1",
    r"features\.(\d+)\.conv\.([01])\.(.*)": r"features.\1.conv.0.\2.\3",
    r"features\.(\d+)\.conv\.3\.(.*)": r"features.\1.conv.1.0.\2",
    r"features\.(\d+)\.conv\.4\.(.*)": r"features.\1.conv.1.1.\2",
    r"features\.(\d+)\.conv\.6\.(.*)": r"features.\1.conv.2.\2",
    r"features\.(\d+)\.conv\.7\.(.*)": r"features.\1.conv.3.\2",
}
LEAST = 64  # the side that leaves 2x2 positions


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    return map_encoder.resized(options, size, LEAST, "so that its stem and stages leave 2x2 positions, not one")


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


class Encoder(map_encoder.Encoder):
    layout = torch.channels_last
    kind = "mobilenet_v2"
    last = "classifier.1"
    names: Mapping[str, str] = OLDER
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "feed_forward": r"features\.\d+\.conv\.[12]",
    }

    def __init__(self, options: Any, channels: int, size: int):
        net = models.mobilenet_v2()
        width, net.classifier = net.last_channel, nn.Identity()
        super().__init__(net, width, [f"features.{i}" for i in range(len(net.features))], channels, size, options.resize)

    def maps(self, images: Tensor) -> Tensor:
        return self.net.features(images)

    @property
    def cam_layers(self) -> list[nn.Module]:
        return list(self.net.features)


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED)
