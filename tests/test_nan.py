"""Steps that are not finite, training that diverges: skipping, going back, stopping, replay."""

import dataclasses
import json
import math
import os
import shutil
from functools import cache
from itertools import count, takewhile
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, latest
from test_train import AUGMENT, data, loop, objective, plan
from torch import nn

from ptmrun import cli, rng
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.errors import UserError
from ptmrun.loss import Learner, Loss
from ptmrun.runs.folder import Run
from ptmrun.storage import tensor_files
from ptmrun.training import recovery
from ptmrun.training.loop import fit

TIMED = {"samples_per_s", "data_wait"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """What is killed here is the process, not the machine: what was written is there."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Killed(BaseException):
    """kill -9: nothing is saved."""


class Bowl(Learner):
    """curvature / 2 * |w - x|^2: gradient descent is stable where lr * curvature < 2; from step `steep` on it is 5."""

    def __init__(self, steep: int):
        super().__init__()
        self.w, self.steep = nn.Parameter(torch.full((3,), 4.0)), steep

    def forward(self, batch):
        curvature = 5.0 if batch["step"] >= self.steep else 1.0
        x = torch.randn(3, generator=rng.generator(0, "x", batch["step"]))
        return Loss(curvature / 2 * (self.w - x).square().sum() * len(batch["ids"]), len(batch["ids"])), {}


class Fragile(Learner):
    """A loss that is not finite at some steps."""

    def __init__(self, bad, value=math.nan):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.bad, self.value = bad, value

    def forward(self, batch):
        factor = self.value if batch["step"] in self.bad else 1.0
        return Loss((self.w * factor).sum() * len(batch["ids"]), len(batch["ids"])), {}


class ShakyInBf16(Learner):
    """An objective whose loss is not finite at some steps of bf16."""

    def __init__(self, inner, bad):
        super().__init__()
        self.inner, self.bad = inner, bad

    def forward(self, batch):
        loss, shown = self.inner(batch)
        bad = torch.is_autocast_enabled("cpu") and batch["rows"].step in self.bad
        return (Loss(loss.total * math.inf, loss.n) if bad else loss), shown


def numbered(a, b):
    return ([{"ids": torch.arange(4), "step": step}] for step in range(a, b))


STEPS = SimpleNamespace(iterate=numbered)
GD = {"optimizer": "sgd", "beta1": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": "null", "ema": "null"}


def events_of(tmp_path, settings, **changes):
    """A plan that recovers, its metrics lines and what it said of recoveries."""
    lines, events = [], []

    def recovered(found):
        events[:] = found

    steps = changes.pop("steps", 30)
    made = plan(tmp_path, settings, steps=steps, lines=lines)
    return dataclasses.replace(made, **{"recover": True, "recovered": recovered, **changes}), lines, events


def timeless(lines):
    return [{k: v for k, v in x.items() if k not in TIMED} for x in lines]


@pytest.mark.parametrize("value", [math.nan, math.inf, 101.0])
def test_a_bad_step_is_skipped_and_counted(tmp_path, value):
    """Not finite, or above 100 times the first loss; the averages of a line leave it out."""
    settings = loop(**GD, lr=1e-3, log_every=1)
    made, lines, _ = events_of(tmp_path, settings, steps=8)
    model = Fragile({2, 3}, value)
    fit(model, STEPS, made)
    torch.testing.assert_close(model.w.detach(), torch.full((3,), 1 - 6e-3))
    assert lines[-1]["skipped"] == 2
    assert [x["step"] for x in lines] == [1, 2, 5, 6, 7, 8]


def test_a_loss_below_the_limit_is_no_explosion(tmp_path):
    made, lines, _ = events_of(tmp_path, loop(**GD, lr=1e-3, log_every=1), steps=8)
    fit(Fragile({2, 3}, 99.0), STEPS, made)
    assert lines[-1]["skipped"] == 0


def test_recovery_halves_the_learning_rate(tmp_path):
    """At lr 1.2 the bowl of curvature 5 throws the weights out, by 5 a step; at 0.6 too, by 2; at 0.3 they stay."""
    settings = loop(**GD, lr=1.2, max_skipped=2, log_every=5, checkpoint_every=1000)
    made, lines, events = events_of(tmp_path, settings, steps=24)
    model = Bowl(steep=8)
    fit(model, STEPS, made)
    assert [e["lr_scale"] for e in events] == [0.5, 0.25]
    assert [e["to"] for e in events] == [6, 6]
    assert "100 times the first, for 2 steps in a row" in events[0]["why"]
    assert [x["step"] for x in lines] == [5, 10, 15, 20, 24], "the path that diverged is cut out"
    assert [x["lr"] for x in lines] == [1.2, 0.3, 0.3, 0.3, 0.3]
    assert "lr_scale" not in lines[0]
    assert (lines[1]["lr_scale"], lines[1]["recoveries"], lines[1]["skipped"]) == (0.25, 2, 4)
    w, losses = torch.full((3,), 4.0), []  # by the formula, from the state that the recoveries went back to
    for step in range(24):
        rate, curvature = (1.2 if step < 6 else 0.3), (5.0 if step >= 8 else 1.0)
        error = w - torch.randn(3, generator=rng.generator(0, "x", step))
        losses.append(float(curvature / 2 * error.square().sum()))
        w = w - rate * curvature * error
    torch.testing.assert_close(model.w.detach(), w)
    averages = [losses[:5], losses[6:10], *(losses[i : i + 5] for i in (10, 15, 20))]  # begun anew at the recovery
    assert [x["loss"] for x in lines] == pytest.approx([sum(x) / len(x) for x in averages], rel=1e-5)


@pytest.mark.parametrize("every", [0, 1000])
def test_a_kill_anywhere_and_resume_change_nothing(tmp_path, every):
    """Killed after every other step, in bad streaks and at each point of a recovery too, with checkpoints everywhere and
    nowhere: the same weights, metrics and recoveries."""
    settings = loop(**GD, lr=1.2, max_skipped=2, log_every=4, checkpoint_every=every)
    made, whole, expected = events_of(tmp_path / "whole", settings, steps=24)
    model = Bowl(steep=8)
    fit(model, STEPS, made)
    assert len(expected) == 2

    def killed_at(kind, number):
        made, lines, events = events_of(tmp_path / f"{kind}{number}", settings, steps=24)
        calls = iter(range(1, 1000))
        plain = getattr(made, kind)

        def kill(*args):
            if next(calls) == number:
                raise Killed
            return plain(*args)

        try:
            fit(Bowl(steep=8), STEPS, dataclasses.replace(made, **{kind: kill}))
            return False
        except Killed:
            pass
        again = Bowl(steep=8)
        fit(again, STEPS, made)
        assert torch.equal(again.w, model.w), (kind, number)
        assert timeless(lines) == timeless(whole), (kind, number)
        assert events == expected, (kind, number)
        return True

    def kills(kind):  # until there is nothing left to be killed before
        return len(list(takewhile(lambda n: killed_at(kind, n), count(1, 1 + (kind == "stop")))))

    moments = {kind: kills(kind) for kind in ("stop", "cut", "recovered")}
    assert moments["stop"] > 15  # steps, those of the cut paths included
    assert moments["cut"] == moments["recovered"] == 3  # the beginning and two recoveries


def fit_shaky(made, settings):
    model = ShakyInBf16(objective(dropout=0.1), {4, 11, 12, 13, 17})
    normalise = ImageProcessor(torch.tensor([0.5]), torch.tensor([0.3]), torch.device("cpu"))
    batches = Batches(data(), normalise, AUGMENT, 1.0, 16, 2, 0, "test")
    fit(model, batches, made)
    return tensor_files.sha256(model.state_dict())


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


def shaky(every):
    return loop(lr=1e-3, max_skipped=3, log_every=3, accumulate=2, ema=0.9, checkpoint_every=every)


@pytest.fixture(scope="module")
def whole_shaky(tmp_path_factory):
    """whole_shaky(checkpoint_every) -> (the weights of an undisturbed training, its lines, its recoveries), made once"""

    @cache
    def whole(every):
        made, lines, events = events_of(tmp_path_factory.mktemp("whole"), shaky(every), steps=20, autocast=bf16, precision="bf16")
        return fit_shaky(made, shaky(every)), lines, events

    return whole


@pytest.mark.parametrize("kill", [3, 12, 13, 14, 20])
def test_bf16_goes_on_in_fp32(tmp_path, kill, whole_shaky):
    """With dropout, weight average, moments and two micro-batches; killed before, in and after the bad streak."""
    settings = shaky(kill % 2 * 1000)
    expected, whole, events = whole_shaky(kill % 2 * 1000)
    assert [(e["to"], e["precision"]) for e in events] == [(10, "fp32")]
    assert whole[-1]["skipped"] == 4, "step 17 is finite in fp32"
    assert whole[-1]["lr_scale"] == 1.0
    made, lines, again = events_of(tmp_path / "parts", settings, steps=20, autocast=bf16, precision="bf16")
    calls = iter(range(1, 100))

    def stop():
        if next(calls) == kill:
            raise Killed

    with pytest.raises(Killed):
        fit_shaky(dataclasses.replace(made, stop=stop), settings)
    assert fit_shaky(made, settings) == expected
    assert timeless(lines) == timeless(whole)
    assert again == events


@pytest.mark.parametrize(("bad", "to"), [(7, 6), (0, 0)])
def test_recoveries_come_to_an_end(tmp_path, bad, to):
    made, _, events = events_of(
        tmp_path, loop(**GD, lr=1e-3, max_skipped=3), bad=tmp_path / "bad.safetensors", replay="ptmrun replay X"
    )
    with pytest.raises(UserError) as caught:
        fit(Fragile(set(range(bad, 30))), STEPS, made)
    assert [e["lr_scale"] for e in events] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert str(caught.value) == (
        "test: loss or gradient not finite, or loss above 100 times the first, for 3 steps in a row, up to step "
        f"{bad + 3} (samples 0, 1, 2, 3) after 5 recoveries; the last checkpoint is of step {to}; try a lower lr, more warmup or "
        "device.precision=fp32; to see where it begins: ptmrun replay X"
    )
    assert (tmp_path / "bad.safetensors").exists()


def test_stop_saves_the_batch(tmp_path):
    made, _, events = events_of(
        tmp_path, loop(**GD, lr=1e-3, max_skipped=2, checkpoint_every=0), recover=False, bad=tmp_path / "bad.safetensors"
    )
    model = Fragile({5, 6})
    with pytest.raises(UserError, match=r"for 2 steps in a row, up to step 7 .*; the last checkpoint is of step 6"):
        fit(model, STEPS, made)
    assert events == []
    assert not [k for k in tensor_files.load(made.file)[0] if k.startswith("good.")], "what does not recover keeps no copies"
    weights, micros, step = recovery.load_batch(tmp_path / "bad.safetensors", None)
    assert torch.equal(weights["w"], model.w)
    assert [m["ids"].tolist() for m in micros] == [[0, 1, 2, 3]]
    assert step == {
        "purpose": "test",
        "seed": 0,
        "step": 6,
        "first": 6,
        "steps": 30,
        "precision": "fp32",
        "limit": 300.0,
        "rows": [None],
    }


def test_weights_that_the_last_step_broke_are_not_the_result(tmp_path):
    """A gradient that is finite and an update that is not, at the last step of all."""

    class Cliff(Fragile):
        def forward(self, batch):
            slope = 1e12 if batch["step"] == 9 else 0.0
            return Loss((slope * (self.w - self.w.detach())).sum(), 1), {}

    made, _, events = events_of(tmp_path, loop(**GD, lr=1e30), steps=10)
    model = Cliff(set())
    with pytest.raises(UserError, match=r"weights not finite after the last step 10 .* after 5 recoveries"):
        fit(model, STEPS, made)
    assert [e["to"] for e in events] == [9] * 5


def test_a_good_state_is_one_whose_loss_has_not_grown(tmp_path):
    """The loss grows slowly, by no more than 100 times: what comes after step 8 is not gone back to."""
    made, _, events = events_of(tmp_path, loop(**GD, lr=0.6, max_skipped=2), steps=24)
    fit(Bowl(steep=8), STEPS, made)
    assert [e["to"] for e in events] == [6]
    assert int(events[0]["why"].split()[-1]) > 13


DIVERGES = [*TINY, "stage=pretrain", "pretrain.max_skipped=2", "pretrain.steps=16", "pretrain.log_every=1"]


def test_an_absurd_learning_rate_ends_with_a_lower_loss(ptmrun):
    """Whole runs: said, in the manifest, in the metrics and in the report; and exact."""
    code, out, err = ptmrun(*DIVERGES, "pretrain.lr=0.8")
    assert code == 0, err
    first = latest()
    manifest, lines = Run.open(first).manifest, [x for x in Run.open(first).metrics() if "loss" in x]
    events = manifest["recoveries"]
    assert 1 <= len(events) <= 5
    assert {e["purpose"] for e in events} == {"pretrain"}
    assert lines[-1]["recoveries"] == len(events)
    assert lines[-1]["lr_scale"] == 0.5 ** len(events)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [x["step"] for x in lines] == list(range(1, 17))
    said = f"went back to step {events[0]['to']} and on with the learning rate times 0.5"
    assert said in out
    page = (first / "report.html").read_text()
    assert "Training diverged" in page
    assert said in page
    code, out, _ = ptmrun("reproduce", first)
    assert code == 0, out
    assert "bit-exact" in out


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """A pretraining that diverges at once, again and again."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("stopped"))
    try:
        assert cli.run([*DIVERGES, "pretrain.lr=10000"]) == 2
        return latest()
    finally:
        os.chdir(before)


def change(folder, name, tensor, place, value):
    file = folder / "checkpoints" / "nan" / name
    tensors, state = tensor_files.load(file)
    tensors[tensor].view(-1)[place] = value
    tensor_files.save(file, tensors, state)


@pytest.fixture
def spoilt(stopped_run, tmp_path):
    shutil.copytree(stopped_run, tmp_path / "run")
    return tmp_path / "run"


def test_replay_sees_what_the_run_saw(spoilt, stopped_run, ptmrun):
    manifest = json.loads((spoilt / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert len(manifest["recoveries"]) == 5
    assert "after 5 recoveries; " in manifest["error"]
    assert manifest["error"].endswith(f"ptmrun replay outputs/{stopped_run.name}")
    code, out, err = ptmrun("replay", spoilt)
    assert code == 0, err
    assert "Replaying step " in out
    assert "weights: finite, the largest is" in out
    assert "batch: finite, the largest is" in out
    assert "in fp32 the step is not finite" in out or "but the loss has exploded" in out


def test_replay_names_the_module(spoilt, ptmrun):
    change(spoilt, "pretrain.safetensors", "model.encoder.vit.layers.1.mlp.fc1.weight", 5, math.inf)
    code, out, err = ptmrun("replay", spoilt)
    assert code == 0, err
    assert "weights: 1 of 80 tensors are not finite: encoder.vit.layers.1.mlp.fc1.weight" in out
    assert "the first output that is not finite: encoder.vit.layers.1.mlp.fc1 (Linear), 0.3% of its values" in out  # 1 of 384
    assert "its input is not finite already" not in out
    assert "gradients, from the loss back: " in out


def test_replay_names_the_batch(spoilt, ptmrun):
    change(spoilt, "pretrain.safetensors", "batch.0.inputs", 0, math.nan)
    code, out, err = ptmrun("replay", spoilt)
    assert code == 0, err
    assert "batch: 1 of 1 tensors are not finite: inputs[0]" in out
    assert "its input is not finite already" in out


def test_replay_says_when_the_step_is_finite(spoilt, ptmrun):
    """With the last good weights in place of those that diverged."""
    good = tensor_files.part(tensor_files.load(spoilt / "checkpoints" / "state" / "pretrain.safetensors")[0], "good.")
    file = spoilt / "checkpoints" / "nan" / "pretrain.safetensors"
    tensors, state = tensor_files.load(file)
    tensor_files.save(file, tensors | {k: v for k, v in good.items() if k.startswith("model.")}, state | {"precision": "bf16"})
    code, out, _ = ptmrun("replay", spoilt)
    assert code == 1
    assert "in bf16 the step is finite" in out
    assert "The same in fp32" in out
    assert "in fp32 the step is finite" in out


def test_fine_tuning_stops_and_is_replayed(done_run, ptmrun):
    argv = [
        "stage=finetune",
        f"init={done_run}",
        "finetune.lr=1e6",
        "finetune.max_skipped=2",
        "finetune.steps=10",
        "device.threads=1",
    ]
    code, _, err = ptmrun(*argv, "finetune.warmup=0", "device.precision=fp32", "--on-nan=stop")
    assert code == 2
    assert "finetune/5-tuned-0: " in err
    code, out, err = ptmrun("replay", "outputs/latest")
    assert code == 0, err
    assert "of finetune/5-tuned-0 in fp32" in out


def test_replay_without_a_batch(done_run, ptmrun):
    code, _, err = ptmrun("replay", done_run)
    assert code == 2
    assert err.count("\n") == 1
    assert "holds no batch to replay; one is saved when training stops because it diverges" in err


@pytest.mark.parametrize(
    "change", [{"rows": 3}, {"rows": [{"x": 1}]}, {"seed": "a"}, {"purpose": None}, {"purpose": "finetune/x"}]
)
def test_a_spoilt_batch_is_refused(spoilt, change, ptmrun):
    file = spoilt / "checkpoints" / "nan" / "pretrain.safetensors"
    tensors, state = tensor_files.load(file)
    tensor_files.save(file, tensors, state | change)
    code, _, err = ptmrun("replay", spoilt)
    assert code == 2
    assert "not a batch that ptmrun saved; refused" in err or "not a training of this run" in err
