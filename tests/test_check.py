"""ptmrun check: what it finds, what it estimates, and that it leaves nothing behind."""

import contextlib
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import TINY, HandMade

from ptmrun.commands import estimate, preflight
from ptmrun.compose import compose
from ptmrun.downstream.classification import Classifier
from ptmrun.loss import Loss


def line(out: str, what: str) -> str:
    """The line of a finding."""
    return next(x for x in out.splitlines() if re.match(rf"\w+ +{re.escape(what)} ", x))


def test_a_sound_config_passes_and_nothing_is_left(ptmrun, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    code, out, err = ptmrun("check", *TINY)
    assert code == 0, err
    assert "failed" not in out
    assert "a uniform prediction has 2.303; expected 1.84 to 2.88" in line(out, "finetune: first loss")
    assert "10 classes of 26 to 28 training images" in line(out, "data")
    assert "337,920 in the encoder, 970 in the classifier; 338,890 trained" in line(out, "finetune: parameters")
    assert "accuracy 1.00" in line(out, "finetune: overfit one batch")
    assert "bit-equal" in line(out, "pretrain: checkpoint")
    assert re.search(r"time +\d+ s: prepare \d+ s, pretrain \d+ s, finetune \d+ s, evaluate \d+ s", out)
    assert not Path("outputs").exists()
    assert not list((tmp_path / "temporary").glob("ptmrun-check-*"))


def test_a_start_from_a_run_is_checked(ptmrun, done_run):
    code, out, err = ptmrun("check", f"init={done_run}", "stage=finetune", "finetune=linear", *TINY[-4:])
    assert code == 0, err
    assert "bit-equal" in line(out, "finetune: checkpoint")


def test_disk_matches_a_real_run(done_run, monkeypatch):
    """The same config: bytes of the finished folder within 20 %; and while it trains, twice the weights and their moments."""
    found = []
    real = estimate.disk
    monkeypatch.setattr(estimate, "disk", lambda *arguments: found.append(real(*arguments)) or found[-1])
    assert not [f for f in preflight.check(compose(TINY)) if f.status == preflight.FAILED]
    done, state = found[0]
    assert done == pytest.approx(sum(p.stat().st_size for p in done_run.rglob("*") if p.is_file()), rel=0.2)
    assert state == pytest.approx(2 * 3 * 4 * 396_904, rel=0.02)


def test_activations_are_counted_without_weights():
    layer = torch.nn.Linear(10, 20)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, batch):
            return Loss(self.layer(batch["x"]).square().sum(), 1), {}

    batch = {"x": torch.ones(4, 10, requires_grad=True)}  # so that autograd keeps the weights too
    assert estimate.activations(Model(), batch, contextlib.nullcontext) == 4 * (4 * 10 + 4 * 20)


@pytest.fixture
def broken(monkeypatch):
    """broken(attribute, function of (old, self, ...)) -> Classifier does that instead."""

    def patch(name, new):
        old = getattr(Classifier, name)
        monkeypatch.setattr(Classifier, name, lambda *a, **k: new(old, *a, **k))

    return patch


def test_a_dead_parameter_is_named(ptmrun, broken):
    def with_unused(old, self, *a, **k):
        old(self, *a, **k)
        self.unused = torch.nn.Parameter(torch.zeros(3))

    broken("__init__", with_unused)
    code, out, _ = ptmrun("check", *TINY, "stage=finetune")
    assert code == 1
    assert line(out, "finetune: gradients") == "failed   finetune: gradients           unused: trained, and never get one"
    assert out.count("failed") == 1


def test_labels_that_say_nothing_are_not_learned(ptmrun, broken):
    order = torch.Generator().manual_seed(0)

    def shuffled(old, self, batch):  # anew at every step
        return old(self, {**batch, "labels": batch["labels"][torch.randperm(len(batch["labels"]), generator=order)]})

    broken("forward", shuffled)
    code, out, _ = ptmrun("check", *TINY, "stage=finetune")
    assert code == 1
    assert line(out, "finetune: overfit one batch").startswith("failed")
    assert "accuracy 1.00" not in line(out, "finetune: overfit one batch")


@pytest.mark.parametrize("lr", ["1e-9", "1e3"])
def test_an_absurd_learning_rate_fails(ptmrun, lr):
    code, out, _ = ptmrun("check", *TINY, "stage=pretrain", f"pretrain.lr={lr}")
    assert code == 1
    assert line(out, "pretrain: overfit one batch").startswith("failed")
    assert f"it does not learn (lr={float(lr):g})" in line(out, "pretrain: overfit one batch")


def test_a_first_loss_far_off_is_a_warning(ptmrun, broken):
    broken("initial_loss", lambda old, self, batch: 20.0)
    code, out, _ = ptmrun("check", *TINY, "stage=finetune")
    assert code == 0
    assert line(out, "finetune: first loss").startswith("warning")
    assert "a uniform prediction has 20.000; expected 16.00 to 25.00" in line(out, "finetune: first loss")


def test_gradients_that_are_not_finite_fail(ptmrun, broken):
    broken("logits", lambda old, self, images: old(self, images) / (len(images) < 50))  # whole batches alone
    code, out, _ = ptmrun("check", *TINY, "stage=finetune")
    assert code == 1
    assert line(out, "finetune: a whole batch").startswith("failed")
    assert "gradients not finite: " in line(out, "finetune: a whole batch")


def test_what_does_not_fit_is_not_tried(ptmrun, monkeypatch):
    monkeypatch.setattr(estimate, "capacity", lambda device: 1_000_000)
    code, out, _ = ptmrun("check", *TINY, "stage=finetune")
    assert code == 1
    assert "raise finetune.accumulate or lower finetune.batch_size" in line(out, "finetune: memory")
    assert "a whole batch" not in out


def test_a_full_disk_is_a_warning(ptmrun, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
    code, out, _ = ptmrun("check", *TINY, "stage=finetune", "finetune=linear")
    assert code == 0
    assert line(out, "disk").startswith("warning")
    assert "970 trained" in line(out, "finetune: parameters")


def test_mistakes_are_one_line(ptmrun):
    code, out, err = ptmrun("check", "pretrain.lr=0")
    assert (code, out) == (2, "")
    assert err == "ptmrun: pretrain.lr=0: expected greater than 0\n"


@pytest.mark.parametrize(("smoothing", "lowest"), [(0.0, 0.0), (0.1, 0.500288)])
def test_the_lowest_loss_is_the_entropy_of_the_labels(smoothing, lowest):
    encoder = HandMade()
    encoder.width = 4
    assert Classifier(encoder, 10, smoothing).lowest_loss({}) == pytest.approx(lowest, abs=1e-5)
