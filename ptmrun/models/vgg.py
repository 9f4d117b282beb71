"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556): torchvision's, with batch normalisation unless it is turned off."""

from typing import Any

import torch
from torch import nn
from torchvision import models

from ptmrun.models import plain_convnet

PUBLISHED = {
    "vgg11": "VGG11_Weights.IMAGENET1K_V1",
    "vgg11_bn": "VGG11_BN_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
    "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1",
}


AS_PUBLISHED = {"hidden": plain_convnet.PUBLISHED}


LEAST = 32  # five poolings


def resolve(options: Any, size: int, channels: int) -> tuple[dict[str, Any], list[str]]:
    return plain_convnet.resolve(options, size, LEAST)


def build(options: Any, size: int, channels: int, attention: str) -> "Encoder":
    return Encoder(options, channels, size)


class Encoder(plain_convnet.Encoder):
    def __init__(self, options: Any, channels: int, size: int):
        self.kind = f"vgg{options.size}{'_bn' if options.batch_norm else ''}"
        with torch.device("meta"):
            net = models.get_model(self.kind, init_weights=False, dropout=options.dropout)
        convolutions = [i for i, layer in enumerate(net.features) if isinstance(layer, nn.Conv2d)]
        blocks = [(f"features.{i}", f"features.{i + 1}") for i in convolutions]  # each with its normalisation
        super().__init__(net, (0, 3), options.hidden, blocks, channels, size, options.resize)
