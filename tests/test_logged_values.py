"""The loop: what it logs, against a clock that is set by hand; its dropout; the weights that a probe sees; signals."""

import dataclasses
import json
import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from test_train import loop, plan
from torch import nn

from ptmrun.compose import compose
from ptmrun.errors import Interrupted
from ptmrun.loss import Learner, Loss
from ptmrun.runs.folder import Run
from ptmrun.training import loop as training
from ptmrun.training import signals
from ptmrun.training.loop import fit

READING, LEARNING, PROBING = 0.25, 0.75, 100.0  # seconds of a batch, of a forward pass, of a probe


class Clock:
    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)
    return clock


class Counting(Learner):
    """Its loss is the number of the step, its only weight has no part in it; a forward pass takes LEARNING seconds, times two in
    the second half."""

    def __init__(self, clock, steps=8):
        super().__init__()
        self.w, self.clock, self.half = nn.Parameter(torch.zeros(1)), clock, steps // 2

    def forward(self, batch):
        self.clock.now += LEARNING * (1 if batch["step"] < self.half else 2) * batch["share"]
        n = len(batch["ids"])
        return Loss((batch["step"] + 1 + 0 * self.w.sum()) * n, n), {"seen": Loss(torch.tensor(3.0 * n), 2 * n)}


def batches(clock, size=16, accumulate=1):
    """Micro-batches of equal size; reading those of a step takes READING seconds."""

    def iterate(start, stop):
        for step in range(start, stop):
            clock.now += READING
            micros = torch.arange(size).split(size // accumulate)
            yield [{"ids": ids, "step": step, "share": 1 / accumulate} for ids in micros]

    return SimpleNamespace(iterate=iterate)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_logged_values_against_the_clock(tmp_path, clock, accumulate):
    """Eight steps of 16 of 50 samples, logged every second one: a second a step in the first half, 1.75 in the other."""
    lines = []
    settings = loop(log_every=2, checkpoint_every=1e6, accumulate=accumulate, warmup=0, schedule="constant", lr=0.01)
    fit(Counting(clock), batches(clock, accumulate=accumulate), plan(tmp_path, settings, lines=lines))
    assert [x["step"] for x in lines] == [2, 4, 6, 8]
    assert [x["epoch"] for x in lines] == [0.64, 1.28, 1.92, 2.56]
    assert [x["samples_per_s"] for x in lines] == [16.0, 16.0, 9.1, 9.1]  # 32 samples in 2 and in 3.5 seconds
    assert [x["data_wait"] for x in lines] == [0.25, 0.25, 0.1429, 0.1429]  # half a second of these
    assert [x["loss"] for x in lines] == [1.5, 3.5, 5.5, 7.5]  # the mean of the steps since the line before
    assert [x["seen"] for x in lines] == [1.5] * 4
    assert [x["lr"] for x in lines] == [0.01] * 4
    assert [x["skipped"] for x in lines] == [0] * 4


def test_the_last_line_is_of_the_steps_that_are_left(tmp_path, clock):
    lines = []
    fit(Counting(clock, 100), batches(clock), plan(tmp_path, loop(log_every=3, checkpoint_every=1e6), steps=7, lines=lines))
    assert [(x["step"], x["loss"], x["samples_per_s"], x["data_wait"]) for x in lines] == [
        (3, 2.0, 16.0, 0.25),
        (6, 5.0, 16.0, 0.25),
        (7, 7.0, 16.0, 0.25),
    ]


def test_a_probe_takes_no_time_from_the_speed(tmp_path, clock):
    """Neither where it comes with a line, after step 4, nor between two of them, after step 6."""
    lines, probed = [], []

    def probe(step):
        clock.now += PROBING
        probed.append(step)

    made = plan(tmp_path, loop(log_every=4, checkpoint_every=1e6), lines=lines)
    fit(Counting(clock, 100), batches(clock), dataclasses.replace(made, probe=probe, probe_at=frozenset({4, 6})))
    assert probed == [4, 6]
    assert [(x["step"], x["samples_per_s"], x["data_wait"]) for x in lines] == [(4, 16.0, 0.25), (8, 16.0, 0.25)]


def test_epochs_go_on_after_a_stop(tmp_path, clock):
    lines, settings = [], loop(log_every=1, checkpoint_every=1e6)
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        fit(Counting(clock), batches(clock), plan(tmp_path, settings, lines=lines, stop=lambda: 15 if next(steps) == 4 else None))
    fit(Counting(clock), batches(clock), plan(tmp_path, settings, lines=lines))
    assert [x["epoch"] for x in lines] == [0.32, 0.64, 0.96, 1.28, 1.6, 1.92, 2.24, 2.56]
    assert [x["samples_per_s"] for x in lines] == [16.0] * 4 + [9.1] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused(value):
    run = Run.create(compose(["name=x"]), [], {})
    run.metric({"stage": "pretrain", "step": 1, "loss": 1.0})
    before = (run.folder / "metrics.jsonl").read_bytes()
    for line in ({"loss": value}, {"layers": [0.5, value]}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.metric({"stage": "pretrain", "step": 2, **line})
    assert (run.folder / "metrics.jsonl").read_bytes() == before
    assert json.loads(before)["loss"] == 1.0


class Drawing(Learner):
    """Notes what its forward pass draws from PyTorch's global generator, as dropout would."""

    def __init__(self):
        super().__init__()
        self.w, self.drawn = nn.Parameter(torch.ones(1)), []

    def forward(self, batch):
        self.drawn.append(float(torch.rand(())))
        return Loss(self.w.sum() * len(batch["ids"]), len(batch["ids"])), {}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_micro_batch_of_every_step_drops_out_other_units(tmp_path, accumulate):
    model = Drawing()
    fit(model, batches(Clock(), accumulate=accumulate), plan(tmp_path, loop(accumulate=accumulate), steps=6))
    assert len(model.drawn) == 6 * accumulate
    assert len(set(model.drawn)) == 6 * accumulate
    again = Drawing()
    fit(again, batches(Clock(), accumulate=accumulate), plan(tmp_path / "again", loop(accumulate=accumulate), steps=6))
    assert again.drawn == model.drawn, "a function of seed, purpose, step and micro-batch"


class Comparing(Drawing):
    """Compares the whole batch, so that each micro-batch is embedded twice."""

    compares = True

    def embed(self, batch):
        self.drawn.append(float(torch.rand(())))
        return self.w * torch.ones(len(batch["ids"]), 1)

    def compare(self, embedded, micros):
        return Loss(embedded.sum(), len(embedded)), {}


def test_both_embeddings_of_a_micro_batch_drop_out_the_same_units(tmp_path):
    model = Comparing()
    fit(model, batches(Clock(), accumulate=4), plan(tmp_path, loop(accumulate=4), steps=3))
    steps = [model.drawn[i : i + 8] for i in range(0, 24, 8)]
    assert all(x[:4] == x[4:] and len(set(x)) == 4 for x in steps)
    assert len(set(model.drawn)) == 12


class Square(Learner):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, batch):
        return Loss((self.w**2).sum() * len(batch["ids"]), len(batch["ids"])), {}


def test_a_probe_sees_the_averaged_weights_and_training_goes_on_from_its_own(tmp_path):
    """w <- 0.8 w in each step of gradient descent at a rate of 0.1; the average's decay is min(0.6, (1 + step) / (10 + step))."""
    settings = loop(ema=0.6, optimizer="sgd", lr=0.1, beta1=0, weight_decay=0, clip="null", schedule="constant", warmup=0)
    model, seen, expected = Square(), [], []
    made = plan(tmp_path, settings, steps=6)
    probe = {"probe": lambda step: seen.append(model.w.detach().clone()), "probe_at": frozenset({2, 5})}
    fit(model, batches(Clock()), dataclasses.replace(made, **probe))
    average = start = torch.tensor([1.0, 2.0])
    for step in range(6):
        decay = min(0.6, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * start * 0.8 ** (step + 1)
        expected.append(average)
    torch.testing.assert_close(torch.stack(seen), torch.stack([expected[1], expected[4]]))
    torch.testing.assert_close(model.w.detach(), expected[5])
    assert (seen[0] - start * 0.8**2).abs().min() > 0.02, "not the trained ones"


def test_without_an_average_a_probe_sees_the_trained_weights(tmp_path):
    settings = loop(optimizer="sgd", lr=0.1, beta1=0, weight_decay=0, clip="null", schedule="constant", warmup=0)
    model, seen = Square(), []
    probe = {"probe": lambda step: seen.append(model.w.tolist()), "probe_at": frozenset({3})}
    fit(model, batches(Clock()), dataclasses.replace(plan(tmp_path, settings, steps=4), **probe))
    assert seen == [pytest.approx([0.512, 1.024])]
    assert model.w.tolist() == pytest.approx([0.4096, 0.8192])


@pytest.fixture
def stop_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(signals, "time", clock)
    return clock


def test_the_first_signal_asks_and_a_later_one_stops_at_once(stop_clock):
    told = []
    stop = signals.Stop(lambda: told.append(True))
    assert stop.pending() is None
    signals.check_stop(stop)
    stop.receive(signal.SIGINT, None)
    assert stop.pending() == signal.SIGINT
    for after in (0.0, 0.5, 0.4):  # the same Ctrl-C, delivered by a terminal and a sweep
        stop_clock.now += after
        try:
            stop.receive(signal.SIGTERM, None)
        except KeyboardInterrupt:  # would end pytest itself
            pytest.fail("stopped at once, less than a second after the first")
    assert stop.pending() == signal.SIGINT
    stop_clock.now += 0.2
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stop.receive(signal.SIGINT, None)
    assert told == [True]
    with pytest.raises(Interrupted):
        signals.check_stop(stop)


def test_signals_of_the_process_reach_it_and_the_handlers_before_come_back(stop_clock):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stop = signals.Stop()
    with stop.handled():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.pending() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        stop_clock.now += 1.5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
