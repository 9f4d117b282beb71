"""The batches of texts that a training stage sees."""

from typing import Any

from torch import Tensor

from ptmrun import rng
from ptmrun.batch import Tokens
from ptmrun.data.epochs import Epochs
from ptmrun.data.text.split import TextSplit


class TextBatches(Epochs):
    """Of token sequences. Texts of different lengths stand beside others of about their length; with `pairs` the batches are not
    of the split's own sequences but of two pieces of its corpus and, as `next` [b], whether the second one followed the first."""

    def __init__(self, split: Any, inputs: Any, batch_size: int, accumulate: int, seed: int, purpose: str, pairs: bool):
        super().__init__(split, inputs, batch_size, accumulate, seed, purpose)
        self.pairs = pairs

    def order(self, epoch: int) -> Tensor:
        known = epoch in self.orders
        drawn = super().order(epoch)
        if known or not isinstance(self.split, TextSplit):
            return drawn
        self.orders[epoch] = self.by_length(epoch, drawn, self.split.lengths)
        return self.orders[epoch]

    def micro(self, samples: Tokens, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        batch: dict[str, Any] = {"ids": ids[place], "rows": rows}
        if self.pairs:
            tokens, follows = self.split.pairs.batch(rows.uniform("pairs", self.split.pairs.draws))
            tokens = self.inputs(tokens)
            return {"inputs": tokens, "next": follows.to(tokens.ids.device), **batch}
        tokens = self.inputs(samples.map(lambda x: x[place]))
        if isinstance(self.split, TextSplit) and (answers := self.split.answers(ids[place])) is not None:
            batch["labels"] = answers.to(tokens.ids.device)
        return {"inputs": tokens, **batch}
