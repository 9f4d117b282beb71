"""The loop: schedule, groups, accumulation, exact resume."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.images.split import Split
from ptmrun.errors import Interrupted, UserError
from ptmrun.loss import Learner, Loss
from ptmrun.models import vit
from ptmrun.objectives import mae, simmim
from ptmrun.storage import tensor_files
from ptmrun.training import optim
from ptmrun.training.loop import fit
from ptmrun.training.plan import Plan
from ptmrun.training.schedule import lr_at

OPTIONS = SimpleNamespace(size="micro", patch=4, pool="mean", dropout=0.1)
AUGMENT = compose([]).dataset.augment


def loop(**changes):
    return compose(["pretrain.epochs=1", *(f"pretrain.{k}={v}" for k, v in changes.items())]).pretrain


def data(n=50):
    pixels = torch.randint(0, 256, (n, 1, 16, 16), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Split(pixels, None, torch.arange(n), torch.arange(n) % 3)


def objective(kind="mae", dropout=0.0):
    rng.seed_everything(0, "test")
    encoder = vit.build(SimpleNamespace(**vars(OPTIONS) | {"dropout": dropout}), ImageSpec(16, 1), "eager")
    if kind == "simmim":
        return simmim.Objective(encoder, SimpleNamespace(mask_ratio=0.5))
    options = SimpleNamespace(mask_ratio=0.5, target="hog", decoder_width=0.33, decoder_depth=1)
    return mae.Objective(encoder, options)


def plan(tmp_path, settings, steps=8, stop=lambda: None, lines=None, size=16):
    lines = [] if lines is None else lines

    def cut(step):
        lines[:] = [x for x in lines if x["step"] <= step]

    return Plan(
        loop=settings,
        steps=steps,
        seed=0,
        purpose="test",
        samples=50,
        batch_size=size,
        depth_of=lambda name: 1 if ".layers." in name else 0,
        depth=2,
        autocast=contextlib.nullcontext,
        file=tmp_path / "state.safetensors",
        metric=lines.append,
        cut=cut,
        stop=stop,
        show=lambda step, values: None,
    )


def run(tmp_path, settings, kind="mae", dropout=0.0, size=16, **extra):
    model = objective(kind, dropout)
    split = data()
    batches = Batches(
        split,
        ImageProcessor(torch.tensor([0.5]), torch.tensor([0.3]), torch.device("cpu")),
        AUGMENT,
        1.0,
        size,
        settings.accumulate,
        0,
        "test",
    )
    fit(model, batches, plan(tmp_path, settings, size=size, **extra))
    return model


def test_lr_schedule():
    settings = loop(lr=1.0, warmup=0.2, min_lr=0.1)
    rates = [lr_at(s, 10, settings) for s in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == 1.0
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert lr_at(7, 10, loop(lr=1.0, schedule="constant", warmup=0)) == 1.0
    assert lr_at(5, 10, loop(lr=1.0, schedule="linear", warmup=0)) == 0.5


def test_groups_decay_matrices_only_and_lower_blocks_more_slowly():
    encoder = vit.build(OPTIONS, ImageSpec(16, 1), "eager")
    groups = optim.groups(encoder, loop(weight_decay=0.3, layer_decay=0.5), encoder.depth_of, encoder.depth + 1)
    of = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    named = dict(encoder.named_parameters())
    assert of[id(named["vit.layers.2.mlp.fc1.weight"])] == (0.5, 0.3)
    assert of[id(named["vit.layers.0.mlp.fc1.weight"])] == (0.125, 0.3)
    assert of[id(named["vit.layers.0.mlp.fc1.bias"])] == (0.125, 0.0)
    assert of[id(named["vit.embeddings.position_embeddings"])] == (0.0625, 0.0)
    assert len(of) == len(named)


@pytest.mark.parametrize("kind", ["mae", "simmim"])
@pytest.mark.parametrize("accumulate", [4, 3])
def test_accumulation_changes_only_rounding(tmp_path, kind, accumulate):
    """32 = 4x8 = 11+10+11: the same gradients up to float rounding, because losses are sums and masks belong to rows."""
    lines: dict[int, list] = {1: [], accumulate: []}
    for n, found in lines.items():
        settings = loop(accumulate=n, log_every=1, lr=1e-3, ema="null", batch_size=32)
        run(tmp_path / str(n), settings, kind, steps=4, lines=found, size=32)
    for a, b in zip(*lines.values(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-4)


@pytest.mark.parametrize("kind", ["mae", "simmim"])
@pytest.mark.parametrize("when", [1, 5])
def test_resume_is_bit_exact(tmp_path, kind, when):
    """A stop after any step and going on gives the same weights and the same metrics, dropout and weight average included."""
    settings = loop(log_every=3, ema=0.9, lr=1e-3, checkpoint_every=1000)
    whole, parts = [], []
    expected = run(tmp_path / "whole", settings, kind, dropout=0.1, lines=whole)
    calls = iter(range(1, 100))
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", settings, kind, dropout=0.1, lines=parts, stop=lambda: 15 if next(calls) == when else None)
    parts.append({"step": when + 1, "loss": 0.0})  # what a killed process may have written after its checkpoint
    resumed = run(tmp_path / "parts", settings, kind, dropout=0.1, lines=parts)
    assert tensor_files.sha256(resumed.state_dict()) == tensor_files.sha256(expected.state_dict())
    timed = {"samples_per_s", "data_wait"}
    assert [{k: v for k, v in x.items() if k not in timed} for x in parts] == [
        {k: v for k, v in x.items() if k not in timed} for x in whole
    ]


def test_weight_average_and_clipping_against_the_formulas(tmp_path):
    class Square(Learner):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, batch):
            return Loss((self.w**2).sum() * len(batch["ids"]), len(batch["ids"])), {}

    batches = SimpleNamespace(iterate=lambda a, b: ([{"ids": torch.arange(2)}] for _ in range(a, b)))
    settings = loop(ema=0.3, optimizer="sgd", lr=0.1, beta1=0, weight_decay=0, clip=3)
    model = Square()
    fit(model, batches, plan(tmp_path, settings, steps=6))
    w = average = torch.tensor([1.0, 2.0])
    for step in range(6):
        gradient = 2 * w
        w = w - lr_at(step, 6, settings) * gradient * min(1.0, 3 / float(gradient.norm()))
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * w
    torch.testing.assert_close(model.w.detach(), average)


def test_a_checkpoint_of_more_steps_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        run(tmp_path, loop(log_every=3), stop=lambda: 2)
    with pytest.raises(UserError, match="not a checkpoint of this run's 7 steps"):
        run(tmp_path, loop(log_every=3), steps=7)


def test_random_numbers_depend_on_purpose_and_place_only():
    whole = rng.BatchRandom(1, 7, 0, 8, 8).uniform("mask", 3)
    assert torch.equal(rng.BatchRandom(1, 7, 2, 5, 8).uniform("mask", 3), whole[2:5])
    assert not torch.equal(rng.BatchRandom(1, 8, 0, 8, 8).uniform("mask", 3), whole)
    assert not torch.equal(rng.BatchRandom(2, 7, 0, 8, 8).uniform("mask", 3), whole)
    assert not torch.equal(rng.BatchRandom(1, 7, 0, 8, 8).uniform("crop", 3), whole)


def test_batches_cover_every_epoch_once():
    split = data(10)
    batches = Batches(split, ImageProcessor(torch.zeros(1), torch.ones(1), torch.device("cpu")), AUGMENT, 0, 4, 1, 0, "x")
    seen = torch.cat([batches.indices(s) for s in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert torch.equal(batches.indices(2), seen[8:12])
