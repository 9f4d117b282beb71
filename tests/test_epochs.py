"""The order of samples, as a whole and place by place."""

import pytest
import torch

from ptmrun import rng
from ptmrun.data import epochs


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 65_537])
def test_scattered_places_are_a_permutation(n):
    whole = rng.scattered(3, "test", n, torch.arange(n))
    assert torch.equal(whole.sort()[0], torch.arange(n))
    some = torch.randint(n, (7,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rng.scattered(3, "test", n, some), whole[some])
    if n > 10:
        assert not torch.equal(rng.scattered(3, "test", n, torch.arange(n), index=1), whole)
        assert not torch.equal(rng.scattered(4, "test", n, torch.arange(n)), whole)


def test_scattered_places_have_no_pattern():
    n, m = 10**9, 20_000
    drawn = rng.scattered(0, "test", n, torch.arange(m))
    assert drawn.unique().numel() == m
    assert drawn.max() < n
    share = torch.histc(drawn.double(), 20, 0, n) / m
    assert ((share - 0.05).abs() < 5 * (0.05 / m) ** 0.5).all(), "as even as draws"
    steps = (drawn[1:] - drawn[:-1]).double()
    assert (steps > 0).double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.corrcoef(torch.stack([drawn[:-1].double(), drawn[1:].double()]))[0, 1].abs() < 0.04


def test_bits_are_mixed_as_published():
    def reference(x):
        whole = (1 << 64) - 1
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & whole
        x = (x ^ x >> 27) * 0x94D049BB133111EB & whole
        return x ^ x >> 31

    values = [0, 1, 2**31, 2**62 + 12345, -1, -(2**63), 987654321987654321]
    got = rng.mixed(torch.tensor(values)).tolist()
    assert [x % 2**64 for x in got] == [reference(x % 2**64) for x in values]


class Rows:
    """A split that is its row numbers."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n


class Plain(epochs.Epochs):
    def micro(self, samples, ids, rows):
        raise AssertionError("not asked for")


@pytest.mark.parametrize("large", [10, 1000])
def test_every_epoch_has_each_sample_once_in_an_order_of_its_own(monkeypatch, large):
    monkeypatch.setattr(epochs, "LARGE", large)
    batches = Plain(Rows(50), None, 20, 1, 0, "test")
    seen = torch.cat([batches.indices(step) for step in range(5)])
    first, second = seen[:50], seen[50:]
    assert torch.equal(first.sort()[0], torch.arange(50))
    assert torch.equal(second.sort()[0], torch.arange(50))
    assert not torch.equal(first, second)
    assert torch.equal(Plain(Rows(50), None, 20, 1, 0, "test").indices(3), batches.indices(3)), "whatever came before"


def test_a_billion_samples_take_no_memory(monkeypatch):
    monkeypatch.setattr(rng, "permutation", lambda *_: pytest.fail("an order of all of them"))
    indices = Plain(Rows(10**9), None, 64, 1, 0, "test").indices(12_345_678)
    assert indices.unique().numel() == 64
    assert 0 <= indices.min() <= indices.max() < 10**9
