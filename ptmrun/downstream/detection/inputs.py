"""Pictures that something is to be found in: cut into squares as in training."""

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptmrun.data.images import decode
from ptmrun.data.sources import Scene, Scenes, Window
from ptmrun.data.sources.boxes.tiles import cut, windows_of
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.detection.split import BoxedSplit

NOTHING = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))


class Opened(NamedTuple):
    """A picture's windows, uint8 [n, C, S, S], and where they stand."""

    pixels: Tensor
    scene: Scene
    windows: list[Window]


def opened(raw: list[Any], setup: ProblemSetup) -> list[Any]:
    """Paths, pictures, arrays uint8 [H, W] or [H, W, C] -> Opened, or Unreadable; two are decoded at a time."""
    processor, facts = setup.processor, setup.facts

    def look(image: Image.Image) -> Opened:
        windows = windows_of(0, *image.size, facts.get("tile"), facts.get("overlap", 0.0))
        channels, scales = len(processor.mean), processor.scales
        pixels = torch.empty(len(windows), channels, processor.size, processor.size, dtype=torch.uint8)
        for row, window in zip(pixels, windows, strict=True):
            row.copy_(decode.tensor(cut(image, window), processor.size, channels, scales))
        return Opened(pixels, Scene("", *image.size, *NOTHING), windows)

    return processor.each(raw, look, at_once=2)


def unlabelled(raw: list[Opened], setup: ProblemSetup) -> BoxedSplit:
    """A split without boxes; each of the pictures is a scene of it."""
    windows = [window._replace(scene=i) for i, picture in enumerate(raw) for window in picture.windows]
    shown = Scenes([picture.scene for picture in raw], windows, setup.facts["categories"], setup.facts.get("tile"))
    pixels = torch.cat([picture.pixels for picture in raw])
    rows = torch.arange(len(pixels))
    return BoxedSplit(pixels=pixels, decoder=None, rows=rows, labels=None, shown=shown, each=[NOTHING] * len(rows))
