"""The batches of images that a training stage sees."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.config.schema import Augment
from ptmrun.data.epochs import Epochs
from ptmrun.data.images import mixup, views
from ptmrun.data.images.augment import augment, moves, warp
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.images.split import Split
from ptmrun.data.images.views import Views


class Batches(Epochs):
    """Of images [b, C, S, S]. For those who ask for several `views` of an image there are also views [V, b, C, S, S], and the
    images are not augmented; with MixUp and CutMix, the labels of the `partners` [b] and the `share` [b] of the first.
    """

    def __init__(
        self,
        split: Split,
        processor: ImageProcessor,
        options: Augment,
        strength: float,
        batch_size: int,
        accumulate: int,
        seed: int,
        purpose: str,
        wanted: Views | None = None,
        alphas: tuple[float, float] = (0.0, 0.0),
    ):
        super().__init__(split, processor, batch_size, accumulate, seed, purpose)
        self.options, self.strength, self.views, self.alphas = options, strength, wanted, alphas

    @property
    def images(self) -> Split:
        return self.split

    def read(self, start: int, stop: int, places: list[tuple[int, int]]) -> Iterator[Tensor]:
        """uint8 [B, C, S, S]. Of images that are decoded while training, only those that are asked for and their partners are."""
        steps, wanted = range(start, stop), [row for first, last in places for row in range(first, last)]
        if self.images.pixels is not None or len(wanted) == self.batch_size:
            yield from self.images.batches(self.indices(step) for step in steps)
            return

        def needed(step: int) -> Tensor:
            return torch.tensor(wanted + (self.partners(step)[wanted].tolist() if any(self.alphas) else []), dtype=torch.int64)

        for step, images in zip(steps, self.images.batches(self.indices(s)[needed(s)] for s in steps), strict=True):
            whole = images.new_empty(self.batch_size, *images.shape[1:])
            whole[needed(step)] = images
            yield whole

    def partners(self, step: int) -> Tensor:
        """Which other image of the batch each is mixed with, [B]."""
        return rng.permutation(rng.key(self.seed, self.purpose), "partners", self.batch_size, step)

    def micro(self, samples: Tensor, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        x = self.inputs(samples[place])
        batch: dict[str, Any] = {"ids": ids[place], "rows": rows}
        answers = self.split.answers(ids[place])
        if self.views:
            batch["views"] = views.make(x, self.options, self.strength, self.views, rows)
        elif (matrices := moves(self.options, self.strength, rows)) is not None:
            x, answers = warp(x, matrices), self.images.moved(answers, matrices)
        if answers is not None:
            batch["labels"] = answers.to(x.device)
        if any(self.alphas):  # with the same geometry, and mixed after it, so that CutMix's share is the area that is seen
            assert self.split.labels is not None
            other = self.partners(rows.step)[place]
            others = augment(self.inputs(samples[other]), self.options, self.strength, rows)
            x, batch["share"] = mixup.mix(x, others, self.alphas, rows)
            batch["partners"] = self.split.labels[ids[other]].to(x.device)
        return {"inputs": x, **batch}
