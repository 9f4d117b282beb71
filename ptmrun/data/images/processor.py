"""Pictures -> what an image encoder takes."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.data import modality
from ptmrun.data.images import decode, levels


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

    def read(self, raw: list[Image.Image]) -> Tensor:
        return torch.stack([decode.tensor(image, self.size, len(self.mean), self.scales) for image in raw])

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
