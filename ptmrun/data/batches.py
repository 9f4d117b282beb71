"""The batches of a training stage: which samples a step sees is a function of (seed, step)."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.config import Augment
from ptmrun.data import mix, views
from ptmrun.data.augment import augment
from ptmrun.data.splits import Split
from ptmrun.data.views import Views


class Normalise:
    """uint8 [B, C, H, W] -> float with mean 0 and standard deviation 1 over the training images."""

    def __init__(self, mean: Tensor, std: Tensor, device: torch.device):
        self.scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        self.shift = (-mean / std).view(1, -1, 1, 1).to(device)
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.to(self.device, torch.float32), self.scale)

    def back(self, images: Tensor) -> Tensor:
        """The inverse, clamped to [0, 1]."""
        return ((images - self.shift) / self.scale / 255).clamp(0, 1)


class Batches:
    """Epochs of a split, each in its own order, one after the other; a batch may span two of them.

    `iterate` gives the micro-batches of each step: dicts of images [b, C, S, S], labels [b] (where there are any), ids [b] and
    `rows`, the random numbers of these rows. For those who ask for several `views` of an image there are also views
    [V, b, C, S, S], and the images are not augmented; with MixUp and CutMix, the labels of the `partners` [b] and the `share` [b]
    of the first.
    """

    def __init__(
        self,
        split: Split,
        normalise: Normalise,
        options: Augment,
        strength: float,
        batch_size: int,
        accumulate: int,
        seed: int,
        purpose: str,
        wanted: Views | None = None,
        alphas: tuple[float, float] = (0.0, 0.0),
    ):
        self.split, self.normalise, self.options, self.strength = split, normalise, options, strength
        self.batch_size, self.accumulate, self.seed, self.purpose = batch_size, accumulate, seed, purpose
        self.views, self.alphas = wanted, alphas
        self.orders: dict[int, Tensor] = {}

    def order(self, epoch: int) -> Tensor:
        if epoch not in self.orders:
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = rng.permutation(self.seed, f"{self.purpose}/shuffle", len(self.split), epoch)
        return self.orders[epoch]

    def indices(self, step: int) -> Tensor:
        """The samples of a step, [batch_size]."""
        n = len(self.split)
        place, stop, parts = step * self.batch_size, (step + 1) * self.batch_size, []
        while place < stop:
            epoch, first = divmod(place, n)
            last = min(n, first + stop - place)
            parts.append(self.order(epoch)[first:last])
            place += last - first
        return torch.cat(parts)

    def iterate(self, start: int, stop: int) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of steps start ... stop-1."""
        bounds = [round(i * self.batch_size / self.accumulate) for i in range(self.accumulate + 1)]
        seed = rng.key(self.seed, self.purpose)
        for step, images in zip(range(start, stop), self.split.batches(self.indices(s) for s in range(start, stop)), strict=True):
            ids = self.indices(step)
            yield [self.micro(images, ids, rng.Rows(seed, step, a, b, self.batch_size)) for a, b in itertools.pairwise(bounds)]

    def micro(self, images: Tensor, ids: Tensor, rows: rng.Rows) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        x = self.normalise(images[place])
        batch: dict[str, Any] = {"ids": ids[place], "rows": rows}
        if self.split.labels is not None:
            batch["labels"] = self.split.labels[ids[place]].to(x.device)
        if self.views:
            batch["views"] = views.make(x, self.options, self.strength, self.views, rows)
        else:
            x = augment(x, self.options, self.strength, rows)
        if any(self.alphas):  # with the same geometry, and mixed after it, so that CutMix's share is the area that is seen
            assert self.split.labels is not None
            other = rng.permutation(rows.seed, "partners", len(ids), rows.step)[place]
            others = augment(self.normalise(images[other]), self.options, self.strength, rows)
            x, batch["share"] = mix.mix(x, others, self.alphas, rows)
            batch["partners"] = self.split.labels[ids[other]].to(x.device)
        return {"images": x, **batch}
