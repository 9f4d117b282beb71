"""Batch normalisation's statistics, taken anew."""

import pytest
import torch
from torch import nn

from ptmrun import normalisation


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.unused, self.still = nn.BatchNorm1d(3), nn.Dropout(0.9), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.still.requires_grad_(False)

    def features(self, x):
        return self.still(self.norm(self.drop(x)))


def test_statistics_are_those_of_the_inputs():
    torch.manual_seed(0)
    encoder = Encoder().train()
    encoder.norm(100 + torch.randn(20, 3))  # what it saw before does not count
    unused = {k: v.clone() for k, v in encoder.unused.state_dict().items()}
    x = 5 + 2 * torch.randn(64, 3)
    normalisation.refresh(encoder, iter([x[:32], x[32:], x[:1]]))  # a single one has no variance
    torch.testing.assert_close(encoder.norm.running_mean, x.mean(0))
    torch.testing.assert_close(encoder.norm.running_var, (x[:32].var(0) + x[32:].var(0)) / 2)
    assert encoder.training
    assert encoder.drop.training
    assert encoder.norm.momentum == 0.1
    assert all(torch.equal(v, unused[k]) for k, v in encoder.unused.state_dict().items())
    assert encoder.still.running_mean.tolist() == [0, 0, 0]  # frozen
    encoder.norm(x)
    assert encoder.norm.num_batches_tracked == 3  # and goes on from there


def test_nothing_is_computed_without_such_layers():
    def never():
        pytest.fail("was asked for inputs")
        yield

    normalisation.refresh(nn.Linear(2, 2), never())
