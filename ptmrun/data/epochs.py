"""Which samples a step of training sees: a function of (seed, step)."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng

LARGE = 1 << 24  # samples, beyond which the order of an epoch is not in memory, nor by length
BUCKET = 32  # batches whose samples are sorted by length together, so that little is padded


class Epochs(ABC):
    """Epochs of a split, each in its own order, one after the other; a batch may span two of them.

    `iterate` gives the micro-batches of each step: dicts of the model's inputs [b, ...], labels (where there are any), ids [b]
    and `rows`, the random numbers of these rows. What a batch holds is up to `micro`.
    """

    def __init__(self, split: Any, inputs: Any, batch_size: int, accumulate: int, seed: int, purpose: str):
        self.split, self.inputs = split, inputs
        self.batch_size, self.accumulate, self.seed, self.purpose = batch_size, accumulate, seed, purpose
        self.orders: dict[int, Tensor] = {}
        self.blocks = getattr(split, "block_shuffle", None)

    @abstractmethod
    def micro(self, samples: Any, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        """The rows of a batch that `rows` names: `samples` and `ids` [batch_size] are those of the whole batch."""

    def order(self, epoch: int) -> Tensor:
        if epoch not in self.orders:
            self.orders = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders[epoch] = rng.permutation(self.seed, f"{self.purpose}/shuffle", len(self.split), epoch)
        return self.orders[epoch]

    def ordered(self, epoch: int, first: int, last: int) -> Tensor:
        """The samples at places first ... last-1 of an epoch."""
        n = len(self.split)
        if self.blocks:
            return self.blocks.ordered(self.seed, f"{self.purpose}/shuffle", epoch, first, last)
        if n <= LARGE:
            return self.order(epoch)[first:last]
        return rng.scattered(self.seed, f"{self.purpose}/shuffle", n, torch.arange(first, last), epoch)

    def by_length(self, epoch: int, drawn: Tensor, lengths: Tensor) -> Tensor:
        """The same order but for samples [N] of about one length, which stand beside each other; lengths [N]."""
        parts = []
        for chunk in drawn.split(BUCKET * self.batch_size):
            batches = chunk[lengths[chunk].argsort(stable=True)].split(self.batch_size)
            full = [b for b in batches if len(b) == self.batch_size]
            mixed = rng.permutation(self.seed, f"{self.purpose}/buckets", len(full), epoch).tolist()
            parts += [*(full[i] for i in mixed), *batches[len(full) :]]
        return torch.cat(parts)

    def indices(self, step: int) -> Tensor:
        """The samples of a step, [batch_size]."""
        n = len(self.split)
        place, stop, parts = step * self.batch_size, (step + 1) * self.batch_size, []
        while place < stop:
            epoch, first = divmod(place, n)
            last = min(n, first + stop - place)
            parts.append(self.ordered(epoch, first, last))
            place += last - first
        return torch.cat(parts)

    def read(self, start: int, stop: int, places: list[tuple[int, int]]) -> Iterator[Any]:
        """What the split has of the batches of steps start ... stop-1. places: of a batch, (first, last) rows of which `micro` is
        asked for; others need not be there."""
        return self.split.batches(self.indices(s) for s in range(start, stop))

    def iterate(self, start: int, stop: int, own: slice = slice(None)) -> Iterator[list[dict[str, Any]]]:
        """The micro-batches of steps start ... stop-1, of each step those of `own`."""
        bounds = [round(i * self.batch_size / self.accumulate) for i in range(self.accumulate + 1)]
        places = list(itertools.pairwise(bounds))[own]
        seed = rng.key(self.seed, self.purpose)
        for step, samples in zip(range(start, stop), self.read(start, stop, places), strict=True):
            ids = self.indices(step)
            yield [self.micro(samples, ids, rng.BatchRandom(seed, step, a, b, self.batch_size)) for a, b in places]
