"""What `ptmrun check` says of several processes, without them."""

import pytest
import torch
from conftest import CNN, TINY
from test_shard import Blocks

from ptmrun.commands import estimate
from ptmrun.commands.preflight import OK, WARNING, together
from ptmrun.commands.scaling import BANDWIDTH, Step, sent
from ptmrun.compose import compose
from ptmrun.errors import UserError
from ptmrun.stages import company

BYTES = 4 * (2 * (9 + 3) + 3 + 1)  # of the weights of Blocks


def test_bytes_over_the_wire():
    """Gradients go around once in two halves; parts are gathered twice for each micro-batch, and then added up."""
    model = Blocks()
    assert sent(model, 8, 1, False) == 0
    assert sent(model, 8, 4, False) == pytest.approx(2 * 3 / 4 * BYTES)
    assert sent(model, 8, 4, True) == pytest.approx(2 * 3 / 4 * 3 * BYTES)
    model.blocks.requires_grad_(False)
    assert sent(model, 8, 4, False) == pytest.approx(2 * 3 / 4 * 16)
    assert sent(model, 4, 4, True) == pytest.approx(3 / 4 * (2 * BYTES + 16))


def test_memory_of_a_part():
    """Weights, gradients, two moments, an average; in four parts a quarter, the head, a block with gradients, all weights."""
    loop = compose(["pretrain.ema=0.9", "pretrain.optimizer=adamw"]).pretrain
    assert estimate.training_state(Blocks(), loop) == 5 * BYTES
    assert estimate.training_state(Blocks(), loop, 4) == 5 * BYTES // 4 + 4 * 4 + 2 * 4 * 12 + BYTES


def step(**changes):
    return Step(**{"samples": 64, "micros": 8, "processes": 4, "alone": 0.8, "reading": 0.1, "sent": 0.1 * BANDWIDTH, **changes})


def test_time_of_a_step():
    assert step().seconds == pytest.approx(0.2 + 0.1)
    assert step(processes=3, sent=0.0).seconds == pytest.approx(0.3)
    assert step(processes=16, sent=0.0).seconds == pytest.approx(0.1)
    assert step(processes=1, sent=0.0).seconds == step().alone
    finding = together("pretrain", step())
    assert finding.status == OK
    assert finding.text.startswith("0.3 s a step, 2.67 times as fast as one: 0.2 s of computing (one takes 0.8 s here; ")
    assert "0.1 s for 125.0 MB over the wire (assumed: 1.25 GB/s, nothing overlaps)" in finding.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": 16}, "a step of 64 samples has 8 micro-batches: 8 processes idle; raise pretrain.batch_size and"),
        ({"processes": 3}, "8 micro-batches cannot be shared equally, so some wait; make pretrain.accumulate a multiple"),
        ({"sent": BANDWIDTH}, "the wire takes longer than computing; raise pretrain.batch_size, or take fewer processes"),
        ({"reading": 0.6}, "making batches takes 75% of a step; raise device.workers"),
    ],
)
def test_stalls_are_named(changes, words):
    finding = together("pretrain", step(**changes))
    assert finding.status == WARNING
    assert words in finding.text


def test_more_processes_than_samples_is_a_mistake():
    with pytest.raises(
        UserError, match=r"^device\.processes=64: a step has pretrain\.accumulate=32 micro-batches, and each process"
    ):
        compose(["device.processes=64", "pretrain.batch_size=32", "stage=pretrain"])
    assert compose(["device.processes=64", "pretrain.batch_size=96", "stage=pretrain"]).pretrain.accumulate == 64


def test_check_starts_none_of_them(ptmrun, monkeypatch):
    monkeypatch.setattr(company, "company", None)
    code, out, err = ptmrun("check", *TINY, *CNN, "task=byol", "stage=pretrain", "device.processes=8")
    assert code == 0, err
    assert torch.distributed.is_initialized() is False
    (line,) = [line for line in out.splitlines() if "pretrain: 8 processes" in line]
    assert "times as fast as one" in line
    assert "over the wire (assumed: 1.25 GB/s" in line
    assert "in the main process with a batch of 32" in out
