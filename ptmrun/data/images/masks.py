"""Masks of images: decoded once, as the images are, and moved with them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ptmrun.data.images import decode
from ptmrun.data.sources import IGNORED, Masks


class PixelClasses(NamedTuple):
    """The class of each pixel of some images."""

    numbers: Tensor  # [B, S, S] int64, IGNORED where it does not matter

    def map(self, change: Callable[[Tensor], Tensor]) -> "PixelClasses":
        return PixelClasses(change(self.numbers))

    def to(self, device: torch.device) -> "PixelClasses":
        return self.map(lambda x: x.to(device))

    def moved(self, matrices: Tensor) -> "PixelClasses":
        """As augment.warp moves the images, by the same maps [B, 2, 3]: of each pixel the nearest; what comes in over an edge is
        IGNORED."""
        shape = [len(self.numbers), 1, *self.numbers.shape[1:]]
        grid = F.affine_grid(matrices.to(self.numbers.device), shape, align_corners=False)
        shifted = (self.numbers[:, None] + 1).float()  # 0 is what is beyond
        moved = F.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)[:, 0].long() - 1
        return PixelClasses(torch.where(moved < 0, IGNORED, moved))


class MaskDecoder(decode.Decoder):
    """index -> (uint8 [1, S, S], whether the image has a mask): cut and scaled as `decode.tensor` does with images, of each pixel
    the nearest. All IGNORED where there is none. Raises UserError for a mask that cannot be used."""

    def __init__(self, masks: Masks, size: int):
        self.masks, self.size, self.channels, self.scales = masks, size, 1, {}

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        mask = self.masks.mask(int(index))
        if mask is None:
            return torch.full((1, self.size, self.size), IGNORED, dtype=torch.uint8), False
        return fitted(mask, self.size)[None], True


def fitted(mask: np.ndarray, size: int) -> Tensor:
    """uint8 [H, W] -> [size, size]"""
    image = Image.fromarray(mask)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image))


def decoded(masks: Masks, size: int) -> tuple[Tensor, Tensor]:
    """(uint8 [N, S, S] of all rows, which of them have a mask [N] bool); in the cache folder, as images are."""
    pixels, there = decode.decoded_once(MaskDecoder(masks, size), f"{masks.fingerprint}/masks", 0, lambda done: None)
    return pixels[:, 0], torch.from_numpy(np.array(there))
