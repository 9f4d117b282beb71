"""What segments images without a training loop."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.data.sources import IGNORED
from ptmrun.downstream import classical
from ptmrun.downstream.segmentation.head import Levels, scaled
from ptmrun.downstream.segmentation.split import MaskedSplit, counted

SEEN = 40_000  # pixels, or places of maps, that a regression is fitted to
CHUNK = 16  # images at a time


def baseline_predictions(kind: str, data: Any, train: MaskedSplit, features: Callable[..., np.ndarray]) -> dict[str, Tensor]:
    """chance: the most frequent class of the training masks everywhere. raw: logistic regression on the colour and place of each
    pixel, and their products. random_frozen, frozen: logistic regression on the maps of an encoder's stages at each place of the
    finest one."""
    if kind == "chance":
        best = int(counted(data.train).argmax())
        return {"masks": torch.full((len(data.test), data.test.side, data.test.side), best, dtype=torch.uint8)}
    if kind == "raw":
        return {"masks": regressed(train, data.test, of_pixels)}
    return {"masks": regressed(train, data.test, partial(of_maps, features, kind))}


def of_pixels(split: MaskedSplit) -> Tensor:
    """Colour and place of each pixel with their products: [B, D, S, S]."""
    images = next(split.all(len(split))).float() / 255
    line = torch.linspace(-1, 1, split.side).expand(len(images), 1, split.side, split.side)
    x = torch.cat([images, line, line.transpose(2, 3)], 1)
    first, second = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, x[:, first] * x[:, second]], 1)


def of_maps(features: Callable[..., np.ndarray], kind: str, split: MaskedSplit) -> Tensor:
    """The maps of an encoder's stages at the side of the finest: [B, D, h, h]."""

    def look(encoder: Any, images: Tensor) -> Tensor:
        levels = Levels(encoder, images.shape[-1])
        return torch.cat([scaled(x, levels.side) for x in levels(encoder, images)], 1)

    return torch.from_numpy(features(kind, split, look))


def regressed(train: MaskedSplit, test: MaskedSplit, look: Callable[[MaskedSplit], Tensor]) -> Tensor:
    """Logistic regression from what `look` sees at each place of some training images to the class there; the classes of all
    pixels of a test split, uint8 [N, S, S]."""
    from sklearn.linear_model import LogisticRegression

    x, y = sampled(train, look)
    if len(np.unique(y)) < 2:
        return torch.full((len(test), test.side, test.side), int(y[0]) if len(y) else 0, dtype=torch.uint8)
    mean, std = x.mean(0), x.std(0) + 1e-6
    model = classical.fitted(LogisticRegression(C=1.0, max_iter=200), (x - mean) / std, y)
    found = []
    for indices in torch.arange(len(test)).split(CHUNK):
        maps = look(test.subset(indices))
        rows = (maps.movedim(1, 3).flatten(0, 2).numpy() - mean) / std
        values = torch.from_numpy(model.decision_function(rows)).float()
        values = torch.stack([-values, values], 1) if values.ndim == 1 else values
        shape = (len(indices), *maps.shape[2:], values.shape[1])
        best = scaled(values.view(shape).movedim(3, 1), test.side).argmax(1)
        found.append(torch.from_numpy(model.classes_)[best].to(torch.uint8))
    return torch.cat(found)


def sampled(train: MaskedSplit, look: Callable[[MaskedSplit], Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, D] and classes [n] of about SEEN places, as many of each image, at random."""
    xs, ys = [], []
    for indices in torch.arange(len(train)).split(CHUNK):
        some = train.subset(indices)
        maps, truth = look(some), some.answers(torch.arange(len(some))).numbers
        side = maps.shape[-1]
        truth = F.interpolate(truth[:, None].float(), (side, side), mode="nearest-exact")[:, 0].long().flatten(1)
        each = max(1, min(side * side, SEEN // len(train)))
        places = torch.stack([rng.permutation(0, "segmentation/floor", side * side, int(row))[:each] for row in some.rows])
        values, classes = maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1)), truth.gather(1, places)
        known = classes != IGNORED
        xs.append(values.movedim(1, 2)[known].numpy())
        ys.append(classes[known].numpy())
    return np.concatenate(xs), np.concatenate(ys)
