"""AlexNet (Krizhevsky 2014, arXiv:1404.5997): torchvision's, 61.10 M parameters with its 1000 classes."""

from typing import Any

import torch
from torchvision import models

from ptmrun.models import plain_convnet

PUBLISHED = {"alexnet": "AlexNet_Weights.IMAGENET1K_V1"}


AS_PUBLISHED = {"hidden": plain_convnet.PUBLISHED}


LEAST = 63  # the side that leaves one position after its convolution of stride 4 and three poolings


def resolve(options: Any, size: int, channels: int) -> tuple[dict[str, Any], list[str]]:
    return plain_convnet.resolve(options, size, LEAST)


def build(options: Any, size: int, channels: int, attention: str) -> "Encoder":
    return Encoder(options, channels, size)


class Encoder(plain_convnet.Encoder):
    layout = torch.channels_last
    kind = "alexnet"

    def __init__(self, options: Any, channels: int, size: int):
        with torch.device("meta"):
            net = models.alexnet(dropout=options.dropout)
        blocks = [f"features.{i}" for i in (0, 3, 6, 8, 10)]
        super().__init__(net, (1, 4), options.hidden, blocks, channels, size, options.resize)
