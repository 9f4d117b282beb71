"""The batches of images with captions that a training stage sees."""

from typing import Any

from torch import Tensor

from ptmrun import rng
from ptmrun.batch import Pair
from ptmrun.config.schema import Augment
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.split import Split
from ptmrun.data.pairs.processor import PairProcessor
from ptmrun.data.pairs.split import PairSplit


class PairBatches(Batches):
    """As those of images, with one of the captions of each, which is drawn anew each time: `inputs` is a Pair; and `same` [b],
    numbers that are equal where a caption fits another image too (see PairSplit)."""

    def __init__(
        self,
        split: PairSplit,
        processor: PairProcessor,
        options: Augment,
        strength: float,
        batch_size: int,
        accumulate: int,
        seed: int,
        purpose: str,
        wanted: Any = None,
        alphas: tuple[float, float] = (0.0, 0.0),
    ):
        super().__init__(
            split,  # type: ignore[arg-type]
            processor.image,
            options,
            strength,
            batch_size,
            accumulate,
            seed,
            purpose,
            wanted,
            alphas,
        )
        self.pairs, self.processor = split, processor

    @property
    def images(self) -> Split:
        return self.pairs.images

    def micro(self, samples: Tensor, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        batch = super().micro(samples, ids, rows)
        images, own = batch["inputs"], ids[rows.start : rows.stop]
        tokens = self.processor.text(self.pairs.tokens(own, rows.uniform("caption")))
        return {**batch, "inputs": Pair(images, tokens), "same": self.pairs.same[own].to(images.device)}
