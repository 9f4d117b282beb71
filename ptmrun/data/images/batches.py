"""The batches of images that a training stage sees."""

from typing import Any

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

    def micro(self, samples: Tensor, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        x = self.inputs(samples[place])
        batch: dict[str, Any] = {"ids": ids[place], "rows": rows}
        answers = self.split.answers(ids[place])
        if self.views:
            batch["views"] = views.make(x, self.options, self.strength, self.views, rows)
        elif (matrices := moves(self.options, self.strength, rows)) is not None:
            x, answers = warp(x, matrices), self.split.moved(answers, matrices)
        if answers is not None:
            batch["labels"] = answers.to(x.device)
        if any(self.alphas):  # with the same geometry, and mixed after it, so that CutMix's share is the area that is seen
            assert self.split.labels is not None
            other = rng.permutation(rows.seed, "partners", len(ids), rows.step)[place]
            others = augment(self.inputs(samples[other]), self.options, self.strength, rows)
            x, batch["share"] = mixup.mix(x, others, self.alphas, rows)
            batch["partners"] = self.split.labels[ids[other]].to(x.device)
        return {"inputs": x, **batch}
