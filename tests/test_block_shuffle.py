"""The order of samples that stand in files: files first, then the samples of a few of them together."""

import pytest
import torch

from ptmrun import rng
from ptmrun.data.block_shuffle import BlockShuffle

COUNTS = torch.tensor([5, 1, 7, 3, 4])
BLOCK = torch.arange(5).repeat_interleave(COUNTS)


def order(size, epoch=0, seed=0):
    return BlockShuffle(COUNTS, size).ordered(seed, "test", epoch, 0, 20)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_each_sample_once_and_never_of_more_blocks_than_a_window_has(size):
    drawn = order(size)
    assert drawn.sort().values.tolist() == list(range(20))
    blocks = rng.permutation(0, "test/blocks", 5)
    ends = COUNTS[blocks].cumsum(0)
    place = 0
    for window, end in zip(blocks.split(size), [*ends[size - 1 : -1 : size], ends[-1]], strict=True):
        assert set(BLOCK[drawn[place:end]].tolist()) == set(window.tolist())
        place = int(end)


def test_any_part_of_an_epoch_is_that_of_the_whole():
    whole, windows = order(2, epoch=3), BlockShuffle(COUNTS, 2)
    for first in range(20):
        for last in range(first + 1, 21):
            assert torch.equal(windows.ordered(0, "test", 3, first, last), whole[first:last])


def test_epochs_and_seeds_differ():
    assert not torch.equal(order(2), order(2, epoch=1))
    assert not torch.equal(order(2), order(2, seed=1))
