"""Pictures -> what an image encoder takes."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.data import modality
from ptmrun.data.images import decode, levels
from ptmrun.data.modality import Unreadable
from ptmrun.data.sources.imagefolder import Files

Made = TypeVar("Made")


class ImageProcessor(modality.Processor):
    """uint8 [B, C, S, S] -> float with mean 0 and standard deviation 1 over the training images. mean, std: [C], of images scaled
    to [0, 1]; size: pixels a side of what `read` gives; scales: of pictures beyond 8 bits, see levels.py."""

    def __init__(self, mean: Tensor, std: Tensor, device: torch.device, size: int = 0, scales: levels.Ranges | None = None):
        self.mean, self.std, self.device, self.size, self.scales = mean, std, device, size, scales
        self.scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        self.shift = (-mean / std).view(1, -1, 1, 1).to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        return torch.addcmul(self.shift, samples.to(self.device, torch.float32), self.scale)

    def back(self, images: Tensor) -> Tensor:
        """The inverse, scaled to [0, 1] and clamped to it."""
        return ((images - self.shift) / self.scale / 255).clamp(0, 1)

    def read(self, raw: list[Any]) -> Tensor:
        """Pictures, or what became of them in `opened`."""
        return torch.stack(
            [x if isinstance(x, Tensor) else decode.tensor(x, self.size, len(self.mean), self.scales) for x in raw]
        )

    def opened(self, raw: list[Any]) -> list[Tensor | Unreadable]:
        """Paths, pictures, arrays uint8 [H, W] or [H, W, C] -> uint8 [C, S, S]."""
        return self.each(raw, lambda image: decode.tensor(image, self.size, len(self.mean), self.scales))

    def each(self, raw: list[Any], make: Callable[[Image.Image], Made], at_once: int | None = None) -> list[Made | Unreadable]:
        """What `make` makes of each, several at a time; at most `at_once` of large ones."""
        with warnings.catch_warnings(), ThreadPoolExecutor(at_once) as pool:
            warnings.simplefilter("ignore")  # for all threads, as those that each of them sets while decoding are the process's
            return list(pool.map(lambda one: self.made(one, make), raw))

    def made(self, raw: Any, make: Callable[[Image.Image], Made]) -> Made | Unreadable:
        """What `make` makes of the picture that a path, a picture or an array is."""
        try:
            if isinstance(raw, str | os.PathLike):
                raw = decode.picture(Files(Path(raw).parent, [Path(raw).name]), 0)
            with decode.decoding():
                return make(raw if isinstance(raw, Image.Image) else Image.fromarray(np.asarray(raw)))
        except decode.Broken as error:
            if isinstance(error.__cause__, TypeError):
                return Unreadable(f"expected a path, a picture or an array of uint8, found {type(raw).__name__}")
            return Unreadable(decode.reason(error.__cause__ or error))

    def noise(self, count: int) -> Tensor:
        shape = (count, len(self.mean), self.size, self.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng.generator(0, "noise"))

    @property
    def spec(self) -> ImageSpec:
        return ImageSpec(self.size, len(self.mean))

    @property
    def preprocessing(self) -> tuple[list[float], list[float]]:
        return self.mean.tolist(), self.std.tolist()

    def configure(self, encoder: Any, options: Any) -> str | None:
        if options.resolution is None:
            return None
        encoder.resize = options.resolution
        return f"finetune.resolution={options.resolution}"

    def mixing(self, options: Any) -> tuple[float, float]:
        return options.mixup, options.cutmix
