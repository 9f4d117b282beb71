"""The order of samples that stand in blocks, such as the tar files of a data set: blocks are shuffled, then the samples of a few
blocks together, so that no more files than these are read from at a time."""

import functools

import torch
from torch import Tensor

from ptmrun import rng


class BlockShuffle:
    """counts [blocks]: samples of each, which stand one after the other. size: blocks whose samples are shuffled together. All is
    a function of (seed, purpose, epoch); in memory are the blocks' order and the samples of a window."""

    def __init__(self, counts: Tensor, size: int):
        self.counts, self.size = counts, size
        self.plan = functools.lru_cache(2)(self._plan)
        self.window = functools.lru_cache(2)(self._window)

    def ordered(self, seed: int, purpose: str, epoch: int, first: int, last: int) -> Tensor:
        """The samples at places first ... last-1 of an epoch."""
        ends = self.plan(seed, purpose, epoch)[1]
        parts, number = [], int(torch.searchsorted(ends, first, right=True))
        while first < last:
            own = self.window(seed, purpose, epoch, number)
            begin = int(ends[number]) - len(own)
            parts.append(own[first - begin : last - begin])
            first, number = begin + len(own), number + 1
        return torch.cat(parts)

    def _plan(self, seed: int, purpose: str, epoch: int) -> tuple[Tensor, Tensor]:
        """(the blocks in their order, after how many samples each window ends)"""
        blocks = rng.permutation(seed, f"{purpose}/blocks", len(self.counts), epoch)
        ends = self.counts[blocks].cumsum(0)
        return blocks, torch.cat([ends[self.size - 1 : -1 : self.size], ends[-1:]])

    def _window(self, seed: int, purpose: str, epoch: int, number: int) -> Tensor:
        """The samples of a window in their order."""
        blocks = self.plan(seed, purpose, epoch)[0][number * self.size : (number + 1) * self.size]
        counts, starts = self.counts[blocks], (self.counts.cumsum(0) - self.counts)[blocks]
        inside = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        own = starts.repeat_interleave(counts) + inside
        return own[rng.permutation(seed, f"{purpose}/window {number}", len(own), epoch)]
