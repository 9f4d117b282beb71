"""Inception v3 (Szegedy et al. 2016, arXiv:1512.00567): torchvision's, with the auxiliary branch that classifiers train with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

PUBLISHED = {"inception_v3": "Inception_V3_Weights.IMAGENET1K_V1"}
LEAST = 75  # the smallest side that leaves one position
BELOW = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2", "Mixed_5b",
         "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"]  # fmt: skip
ABOVE = ["Mixed_7a", "Mixed_7b", "Mixed_7c"]


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    return map_encoder.resized(options, size, LEAST, "the least that its unpadded convolutions leave anything of")


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


class Encoder(map_encoder.Encoder):
    """The auxiliary branch is frozen and not computed until a classifier asks for it with `auxiliary()`."""

    layout = torch.channels_last
    kind = "inception_v3"
    auxiliary_width = 768
    last = "fc"

    def __init__(self, options: Any, channels: int, size: int):
        net = models.inception_v3(init_weights=False, dropout=options.dropout)
        net.fc, net.AuxLogits.fc = nn.Identity(), nn.Identity()
        net.AuxLogits.requires_grad_(False)
        blocks = [name for name in BELOW + ABOVE if "pool" not in name]
        super().__init__(net, 2048, blocks, channels, size, options.resize)

    def empty(self, classes: int) -> nn.Module:
        return models.inception_v3(num_classes=classes, init_weights=False)

    def lines(self, classes: int) -> list[str]:
        return [f"net = torchvision.models.inception_v3(num_classes={classes}, init_weights=False)"]

    def through(self, names: list[str], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self.net, name)(x)
        return x

    def maps(self, images: Tensor) -> Tensor:
        return self.through(BELOW + ABOVE, images)

    def pooled(self, maps: Tensor) -> Tensor:
        return self.net.dropout(maps.mean((2, 3)))

    def auxiliary(self) -> None:
        self.net.AuxLogits.requires_grad_(True)

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(features [B, 2048], those of the auxiliary branch [B, 768])"""
        x = self.through(BELOW, self.prepare(images))
        branch = self.net.AuxLogits
        # 5x5 positions as in the published branch (its 17x17 pooled by 5 with stride 3), also where the map is smaller
        small = F.avg_pool2d(x, 5, 3) if x.shape[-1] >= 17 else F.adaptive_avg_pool2d(x, 5)
        return self.pooled(self.through(ABOVE, x)), branch.conv1(branch.conv0(small)).mean((2, 3))

    @property
    def cam_layers(self) -> list[nn.Module]:
        return [self.net.Mixed_5d, self.net.Mixed_6e, self.net.Mixed_7c]


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED)
