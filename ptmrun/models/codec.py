"""Images as a few codes, and codes as images: two small convolutional networks with a codebook between them.

A code is the nearest of the codebook's vectors, all of length 1, to what the encoder gives (Yu et al. 2022, "Vector-quantized
image modeling with improved VQGAN", section 3.2): its cosines with all of them are what objectives work on.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CODE = 8  # dimensions of a code's vector; in a few, more of them are used
GRID = 8  # codes a side at most; there are at least half as few as pixels


def halvings(side: int) -> int:
    """How often the encoder halves an image's side."""
    count = 1
    while side / 2**count > GRID:
        count += 1
    return count


class Residual(nn.Module):
    """Two 3x3 convolutions beside the way through, as in DALL-E's networks; the second begins at 0."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            for parameter in self.second.parameters():
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


class Codec(nn.Module):
    """Images [B, C, S, S] <-> codes [B, g * g] in raster order. Sides that the halvings do not divide are scaled inside."""

    def __init__(self, side: int, channels: int, width: int, codes: int):
        super().__init__()
        times = halvings(side)
        self.side, self.count = side, codes
        self.grid = -(-side // 2**times)
        self.inside = self.grid * 2**times
        widths = [channels, *[width] * times]
        down = [nn.Sequential(nn.Conv2d(a, b, 4, stride=2, padding=1), Residual(b)) for a, b in itertools.pairwise(widths)]
        self.encoder = nn.ModuleList([*down, Residual(width)])
        self.to_code = nn.Conv2d(width, CODE, 1)
        self.codes = nn.Parameter(F.normalize(torch.randn(codes, CODE), dim=1))
        self.from_code = nn.Conv2d(CODE, width, 1)
        up: list[nn.Module] = []
        for after in reversed(widths[:-1]):
            up += [Residual(width), nn.ConvTranspose2d(width, after, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(Residual(width), *up)

    @property
    def book(self) -> Tensor:
        """The codes' vectors, [codes, CODE]."""
        return F.normalize(self.codes.float(), dim=1)

    def trim(self) -> None:
        """Leaves out for good what `maps` does not need."""
        del self.to_code, self.codes, self.from_code, self.decoder

    def maps(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, width, g, g]"""
        if images.shape[-1] != self.inside:
            images = F.interpolate(images, (self.inside, self.inside), mode="bilinear", align_corners=False, antialias=True)
        for layer in self.encoder:
            images = layer(images)
        return images

    def vectors(self, images: Tensor) -> Tensor:
        """What is quantised, of length 1: [B, C, S, S] -> float32 [B, g * g, CODE]."""
        return F.normalize(self.to_code(self.maps(images).relu()).float().flatten(2).transpose(1, 2), dim=2)

    def cosines(self, vectors: Tensor) -> Tensor:
        """With each code: [B, n, CODE] -> [B, n, codes]."""
        with torch.autocast(vectors.device.type, enabled=False):
            return vectors @ self.book.T

    def tokens(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> int64 [B, g * g]"""
        return self.cosines(self.vectors(images)).argmax(2)

    def decode(self, vectors: Tensor) -> Tensor:
        """Vectors of codes, or mixtures of them, as an image: [B, g * g, CODE] -> [B, C, S, S]."""
        maps = self.from_code(vectors.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        images = self.decoder(maps)
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side, self.side), mode="bilinear", align_corners=False, antialias=True)
        return images

    def images(self, tokens: Tensor) -> Tensor:
        """int64 [B, g * g] -> [B, C, S, S]"""
        return self.decode(self.book[tokens])
