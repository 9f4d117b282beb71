"""AlexNet (Krizhevsky 2014, arXiv:1404.5997): torchvision's, 61.10 M parameters with its 1000 classes."""

from typing import Any

import torch
from torchvision import models

from ptmrun.batch import ImageSpec
from ptmrun.models import plain_convnet
from ptmrun.models.base import Family

PUBLISHED = {"alexnet": "AlexNet_Weights.IMAGENET1K_V1"}
AS_PUBLISHED = {"hidden": plain_convnet.PUBLISHED}
LEAST = 63  # the side that leaves one position after its convolution of stride 4 and three poolings


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    return plain_convnet.resolve(options, size, LEAST)


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


class Encoder(plain_convnet.Encoder):
    layout = torch.channels_last
    kind = "alexnet"

    def __init__(self, options: Any, channels: int, size: int):
        with torch.device("meta"):
            net = models.alexnet(dropout=options.dropout)
        blocks = [f"features.{i}" for i in (0, 3, 6, 8, 10)]
        super().__init__(net, (1, 4), options.hidden, blocks, channels, size, options.resize)


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED)
