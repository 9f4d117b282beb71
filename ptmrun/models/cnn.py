"""The convolutional network of the textbooks (after LeNet, LeCun et al. 1998): two pooled convolutions, two linear layers.

The second linear layer is the classifier's; the encoder ends with the first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

GRID = 7  # at most this many positions a side reach the linear layer, whatever the image's size


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    return {}, []


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options.width, options.hidden, channels, size)


class Net(nn.Module):
    """conv 3x3 - ReLU - pool - conv 3x3 - ReLU - pool - linear - ReLU"""

    def __init__(self, width: int, hidden: int, grid: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * grid * grid, hidden)
        self.pool = nn.MaxPool2d(2)
        self.shrink = nn.AdaptiveAvgPool2d(grid)

    def maps(self, images: Tensor) -> Tensor:
        return self.shrink(self.pool(self.conv2(self.pool(self.conv1(images).relu())).relu()))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc1(self.maps(images).flatten(1)).relu()


class Encoder(map_encoder.Encoder):
    layout = torch.channels_last
    kind = "cnn"

    def __init__(self, width: int, hidden: int, channels: int, size: int):
        net = Net(width, hidden, min(GRID, max(1, size // 4)))
        super().__init__(net, hidden, ["conv1", "conv2", "fc1"], channels, size, size)

    def maps(self, images: Tensor) -> Tensor:
        return self.net.maps(images)

    def pooled(self, maps: Tensor) -> Tensor:
        return self.net.fc1(maps.flatten(1)).relu()

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        net: Any = self.net
        fine = net.conv1(self.prepare(images)).relu()
        half = net.conv2(net.pool(fine)).relu()
        return list({x.shape[-1]: x for x in (fine, half, net.shrink(net.pool(half)))}.values())

    @property
    def above_map(self) -> list[nn.Module]:
        return [self.net.fc1]

    @property
    def cam_layers(self) -> list[nn.Module]:
        return [self.net.shrink]


FAMILY = Family(resolve=resolve, build=build)
