"""Maps of an encoder -> three levels with places 8, 16 and 32 pixels apart, by a feature pyramid (FPN: Lin et al. 2017,
arXiv:1612.03144). Where the encoder has no map of a level's side, one is made of the nearest (a simple feature pyramid: Li et al.
2022, arXiv:2203.16527)."""

import math
from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

STRIDES = (8, 16, 32)  # P3 to P5
CHANNELS, GROUPS = 64, 32


class Pyramid(nn.Module):
    """dims, sides: of the encoder's maps, the finest first; size: side of the images."""

    out_channels = CHANNELS

    def __init__(self, dims: list[int], sides: list[int], size: int):
        super().__init__()
        self.sides = [size // stride for stride in STRIDES]
        self.sources = [min(range(len(sides)), key=lambda i: abs(math.log2(sides[i] / side))) for side in self.sides]
        self.sources[-1] = len(sides) - 1  # so that nothing of the encoder is left out
        octaves = [round(math.log2(side / sides[i])) for side, i in zip(self.sides, self.sources, strict=True)]
        self.scaled = nn.ModuleList(scaling(dims[i], n) for i, n in zip(self.sources, octaves, strict=True))
        widths = [CHANNELS if n > 0 else dims[i] for i, n in zip(self.sources, octaves, strict=True)]
        self.top_down = FeaturePyramidNetwork(widths, CHANNELS)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[B, D, h, w] each -> [B, CHANNELS, side, side] of each level."""
        levels = OrderedDict()
        for i, (source, scale, side) in enumerate(zip(self.sources, self.scaled, self.sides, strict=True)):
            x = scale(maps[source])
            if x.shape[-1] != side:
                x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
            levels[str(i)] = x
        return list(self.top_down(levels).values())


def scaling(width: int, octaves: int) -> nn.Module:
    """Twice as fine so many times, or as coarse where it is negative."""
    layers: list[nn.Module] = []
    for _ in range(octaves):
        layers += [nn.ConvTranspose2d(width, CHANNELS, 2, stride=2), nn.GroupNorm(GROUPS, CHANNELS), nn.GELU()]
        width = CHANNELS
    layers += [nn.MaxPool2d(2) for _ in range(-octaves)]
    return nn.Sequential(*layers)
