"""Three convolutions over a series, then the mean of the positions."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptmrun.models import library_format
from ptmrun.models.base import Encoder, Family


class Conv1d(Encoder):
    from_library = False

    def __init__(self, width: int):
        super().__init__()
        self.width, self.depth = width, 3
        layers = [(nn.Conv1d(1 if i == 0 else width, width, 7, padding=3), nn.GELU()) for i in range(self.depth)]
        self.layers = nn.ModuleList(nn.Sequential(*layer) for layer in layers)

    def positions(self, inputs: Tensor) -> Tensor:
        """[B, 1, T] -> [B, width, T]"""
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    def features(self, inputs: Tensor) -> Tensor:
        return self.positions(inputs).mean(2)

    def depth_of(self, name: str) -> int:
        return int(name.split("layers.")[1].split(".")[0]) + 1

    def save(self, folder: Path, *preprocessing: Any) -> None:
        about = {"library": "none", "width": self.width, "mean": preprocessing[0], "std": preprocessing[1]}
        library_format.save(self, folder, about, None)

    def load(self, folder: Path) -> None:
        library_format.load(self, folder, library_format.tensors_of(folder))


FAMILY = Family(resolve=lambda options, spec: ({}, []), build=lambda options, spec, attention: Conv1d(options.width))
