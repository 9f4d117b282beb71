"""The batches of sounds that a training stage sees."""

from typing import Any

from torch import Tensor

from ptmrun import rng
from ptmrun.batch import Waves
from ptmrun.data.epochs import Epochs


class AudioBatches(Epochs):
    """Of sounds, which stand beside others of about their length."""

    def order(self, epoch: int) -> Tensor:
        known = epoch in self.orders
        drawn = super().order(epoch)
        if not known:
            self.orders[epoch] = self.by_length(epoch, drawn, self.split.lengths)
        return self.orders[epoch]

    def micro(self, samples: Waves, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        inputs = self.inputs(samples.map(lambda x: x[place]))
        batch: dict[str, Any] = {"inputs": inputs, "ids": ids[place], "rows": rows}
        if (answers := self.split.answers(ids[place])) is not None:
            batch["labels"] = answers.to(inputs.values.device)
        return batch
