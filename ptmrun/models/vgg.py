"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556): torchvision's, with batch normalisation unless it is turned off."""

from typing import Any

import torch
from torch import nn
from torchvision import models

from ptmrun.batch import ImageSpec
from ptmrun.models import plain_convnet
from ptmrun.models.base import Family

PUBLISHED = {
    "vgg11": "VGG11_Weights.IMAGENET1K_V1",
    "vgg11_bn": "VGG11_BN_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
}
AS_PUBLISHED = {"hidden": plain_convnet.PUBLISHED}
LEAST = 32  # five poolings


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    return plain_convnet.resolve(options, size, LEAST)


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


class Encoder(plain_convnet.Encoder):
    def __init__(self, options: Any, channels: int, size: int):
        self.kind = f"vgg{options.size}{'_bn' if options.batch_norm else ''}"
        with torch.device("meta"):
            net = models.get_model(self.kind, init_weights=False, dropout=options.dropout)
        convolutions = [i for i, layer in enumerate(net.features) if isinstance(layer, nn.Conv2d)]
        blocks = [(f"features.{i}", f"features.{i + 1}") for i in convolutions]  # each with its normalisation
        super().__init__(net, (0, 3), options.hidden, blocks, channels, size, options.resize)


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED)
