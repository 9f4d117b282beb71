"""Several random views of each image: crop, colour and blur as in SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A), on top
of the data set's own geometry, for a whole batch at once and fit for small and gray images.

Images are standardised, so colour is changed in units of the data's standard deviation.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.config.schema import Augment
from ptmrun.data.images.augment import geometry, warp
from ptmrun.rng import BatchRandom

# luminance and two colour axes (YIQ), which are 0 for gray; hue is a turn of the latter
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


class Views(Protocol):
    """What an objective asks for."""

    views: int  # views of an image
    crop: float  # the smallest area of a crop, as a share of the image's
    colour: float  # strength of the colour changes (SimCLR's s); gray images: of brightness and contrast
    blur: float  # share of the views that are blurred


def make(images: Tensor, options: Augment, strength: float, wanted: Views, rows: BatchRandom) -> Tensor:
    """float [B, C, S, S] -> [V, B, C, S, S]"""
    return torch.stack([view(images, options, strength, wanted, rows, f"view{i}") for i in range(wanted.views)])


def view(images: Tensor, options: Augment, strength: float, wanted: Views, rows: BatchRandom, purpose: str) -> Tensor:
    """One interpolation for crop and geometry together, then colour and blur."""
    inner = geometry(options, strength, rows, f"{purpose}/geometry")
    x = warp(images, inner @ square(crop(wanted.crop, rows.uniform(f"{purpose}/crop", 4))))
    x = colour(x, wanted.colour, rows.uniform(f"{purpose}/colour", 6).to(x.device))
    drawn = rows.uniform(f"{purpose}/blur", 2).to(x.device)
    most = max(0.5, images.shape[-1] / 112)  # a standard deviation of at most 2 pixels at 224
    return blur(x, torch.where(drawn[:, 0] < wanted.blur, 0.1 + (most - 0.1) * drawn[:, 1], 0.0), math.ceil(2 * most))


def crop(least: float, drawn: Tensor) -> Tensor:
    """Affine maps [B, 2, 3] of crops with a share of the area from `least` to 1 and sides from 3:4 to 4:3; drawn [B, 4]."""
    area = least + (1 - least) * drawn[:, 0]
    ratio = ((-area.log()).clamp(max=math.log(4 / 3)) * (2 * drawn[:, 1] - 1)).exp()  # neither side is longer than the image's
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * drawn[:, 2] - 1), (1 - height) * (2 * drawn[:, 3] - 1)
    zero = torch.zeros_like(x)
    return torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)


def square(matrices: Tensor) -> Tensor:
    """Affine maps [B, 2, 3] -> [B, 3, 3], so that they can be multiplied."""
    return torch.cat([matrices, torch.tensor([0.0, 0.0, 1.0]).expand(len(matrices), 1, 3)], 1)


def colour(images: Tensor, strength: float, drawn: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of four in five images, and one in five gray; drawn [B, 6]."""
    if strength == 0:
        return images
    amount = torch.where(drawn[:, 4:5] < 0.8, strength * (2 * drawn[:, :4] - 1), 0.0)
    bright, contrast, saturation, hue = (x[:, None, None, None] for x in (amount * drawn.new_tensor([0.8, 0.8, 0.8, 0.2])).T)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + contrast).clamp(min=0.1) + bright
    if images.shape[1] != 3:
        return images
    saturation = torch.where(drawn[:, 5, None, None, None] < 0.2, 0.0, (1 + saturation).clamp(min=0))
    axes = YIQ.to(images.device)
    y, i, q = torch.einsum("kc,bchw->kbhw", axes, images)
    cos, sin = (saturation * (2 * math.pi * hue).cos())[:, 0], (saturation * (2 * math.pi * hue).sin())[:, 0]
    turned = torch.stack([y, cos * i - sin * q, sin * i + cos * q])
    return torch.einsum("ck,kbhw->bchw", torch.linalg.inv(axes), turned)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with a standard deviation in pixels for each image, [B]; 0: none."""
    if not sigma.any():
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    weights = (-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square()).exp()
    weights = (weights / weights.sum(1, keepdim=True))[:, :, None, None, None]
    for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, size = F.pad(images, pad, mode="replicate"), images.shape[dim]
        shifted = [weights[:, k] * padded.narrow(dim, k, size) for k in range(2 * radius + 1)]
        images = torch.stack(shifted).sum(0)
    return images
