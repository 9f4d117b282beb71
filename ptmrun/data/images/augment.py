"""Random geometry of a whole batch at once, on the device, from numbers that depend on (seed, step, row) alone."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.config.schema import Augment
from ptmrun.rng import BatchRandom


def augment(images: Tensor, options: Augment, strength: float, rows: BatchRandom) -> Tensor:
    """float [B, C, H, W] -> the same shape: shift, rotation, scale, shear (times `strength`) and flip; edges are repeated."""
    matrices = moves(options, strength, rows)
    return images if matrices is None else warp(images, matrices)


def moves(options: Augment, strength: float, rows: BatchRandom) -> Tensor | None:
    """The affine maps [B, 2, 3] of `augment`; None where nothing is changed."""
    amounts = options.rotate, options.shear, options.scale, options.shift
    if strength == 0 or not (any(amounts) or options.flip):
        return None
    return geometry(options, strength, rows, "augment")


def geometry(options: Augment, strength: float, rows: BatchRandom, purpose: str) -> Tensor:
    """Affine maps from output to input coordinates (both in -1 ... 1), [B, 2, 3]."""
    limits = torch.tensor(
        [
            math.radians(options.rotate),
            math.radians(options.shear),
            math.log1p(options.scale),
            options.shift,
            options.shift,
        ]
    )
    drawn = rows.uniform(purpose, 6)
    angle, shear, scale, x, y = (strength * limits * (2 * drawn[:, :5] - 1)).T
    mirror = torch.where(drawn[:, 5] < 0.5, -1.0, 1.0) if options.flip else torch.ones(len(drawn))
    zoom, tangent = scale.exp(), shear.tan()
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    return torch.stack(
        [
            torch.stack([cos * mirror, tangent * zoom - sin, 2 * x], 1),
            torch.stack([sin * mirror, cos, 2 * y], 1),
        ],
        1,
    )


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Samples images [B, C, H, W] at affine maps [B, 2, 3], bilinear, edges repeated."""
    grid = F.affine_grid(matrices.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
