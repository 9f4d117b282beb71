"""The loop with objectives that compare views: accumulation, teachers and statistics on resume and on skipped steps; LARS."""

import contextlib
import copy
import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from test_train import AUGMENT, data, loop, plan
from test_vision_models import FAMILIES, build
from torch import nn

from ptmrun.compose import compose
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.errors import Interrupted
from ptmrun.loss import Learner, Loss
from ptmrun.objectives import byol, dino, simclr, simmim, supervised
from ptmrun.stages import context
from ptmrun.storage import tensor_files
from ptmrun.training import optim, recovery
from ptmrun.training.loop import backward_together, fit, gradients
from ptmrun.training.processes import ALONE
from ptmrun.training.schedule import lr_at

OBJECTIVES = {"supervised": supervised, "simclr": simclr, "byol": byol, "dino": dino, "simmim": simmim}
NORMALISE = ImageProcessor(torch.tensor([0.5]), torch.tensor([0.3]), torch.device("cpu"))
SMALL = {"resnet": {"resize": "none"}, "bit": {"resize": "none"}, "vgg": {"hidden": 32}, "cnn": {"width": 8, "hidden": 32}}


@functools.cache
def encoder_of(name, side=16, channels=1):
    return build(name, side, channels, **SMALL.get(name, {}))


@functools.cache
def options(task):
    return compose([f"task={task}", *(["task.hidden=32"] if task in ("simclr", "byol", "dino") else [])]).task


def objective(task, name="cnn", side=16, channels=1):
    encoder = copy.deepcopy(encoder_of(name, side, channels))
    torch.manual_seed(1)
    known = {"classes": 3} if task == "supervised" else {}
    return OBJECTIVES[task].Objective(encoder, options(task), **known)


def batches_for(model, accumulate=1, size=16, split=None):
    alphas = getattr(model, "alphas", (0.0, 0.0))
    return Batches(split or data(), NORMALISE, AUGMENT, 1.0, size, accumulate, 0, "test", getattr(model, "views", None), alphas)


def train(folder, model, settings, **extra):
    depth_of = functools.partial(context.depth_of, getattr(model, "inner", model).encoder)
    made = dataclasses.replace(plan(folder, settings, **extra), depth_of=depth_of, depth=9)
    fit(model, batches_for(getattr(model, "inner", model), settings.accumulate), made)
    return model


def without_batch_statistics(model):
    """Batch normalisation left out of the heads, of student and teacher alike."""
    for module in model.modules():
        for i, layer in enumerate(module if isinstance(module, nn.Sequential) else ()):
            if isinstance(layer, nn.BatchNorm1d):
                module[i] = nn.Identity()
    return model


@pytest.mark.parametrize(("task", "name"), [("simclr", "cnn"), ("byol", "cnn"), ("dino", "cnn"), ("supervised", "cnn")])
def test_accumulation_changes_only_rounding(tmp_path, task, name):
    """Where nothing is normalised over a batch: SimCLR compares the whole batch, the teacher's centre counts all of it.

    With batch normalisation the micro-batches have statistics of their own, in every framework.
    """
    lines: dict[int, list] = {1: [], 2: [], 4: []}
    ends = {}
    for n, found in lines.items():
        model = without_batch_statistics(objective(task, name))
        settings = loop(accumulate=n, log_every=1, lr=0.01, optimizer="sgd", clip="null")
        ends[n] = train(tmp_path / str(n), model, settings, steps=3, lines=found).state_dict()
    for n in (2, 4):
        for a, b in zip(lines[1], lines[n], strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=2e-4)
        for name, value in ends[1].items():
            torch.testing.assert_close(ends[n][name], value, rtol=1e-4, atol=1e-5)
    assert lines[1][0]["loss"] != lines[1][2]["loss"]


def test_gradients_of_a_whole_batch_from_micro_batches():
    """GradCache: every gradient is that of the loss over the whole batch at once, and statistics count once."""
    whole, parts = objective("simclr"), objective("simclr")
    (batch,) = next(batches_for(whole).iterate(0, 1))
    loss, _ = whole(batch)
    (loss.total / loss.n).backward()
    micros = next(batches_for(parts, 3).iterate(0, 1))
    sums = gradients(parts, parts, micros, contextlib.nullcontext)
    assert sums["loss"] == pytest.approx([float(loss.total.detach()), 32], rel=1e-5)
    for (name, a), b in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-6, msg=name)

    model = objective("simclr", "resnet").train()
    before = copy.deepcopy(model.state_dict())
    backward_together(model, micros, contextlib.nullcontext, ALONE)
    once = objective("simclr", "resnet").train()
    for micro in micros:
        once.embed(micro)
    for name, value in once.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not torch.equal(before["encoder.net.bn1.running_mean"], model.state_dict()["encoder.net.bn1.running_mean"])
    assert int(model.state_dict()["encoder.net.bn1.num_batches_tracked"]) == 3


@pytest.mark.parametrize(
    ("task", "name", "changes"),
    [
        ("byol", "cnn", {"ema": 0.9}),
        ("dino", "cnn", {"accumulate": 2}),
        ("dino", "resnet", {"optimizer": "sgd"}),
        ("simclr", "resnet", {"optimizer": "lars", "accumulate": 2}),
    ],
)
def test_teachers_centre_and_statistics_resume_bit_exactly(tmp_path, task, name, changes):
    settings = loop(log_every=3, lr=1e-3, checkpoint_every=1000, **changes)
    whole, parts = [], []
    expected = train(tmp_path / "whole", objective(task, name), settings, steps=6, lines=whole)
    calls = iter(range(1, 100))
    signal = {"stop": lambda: 15 if next(calls) == 4 else None}
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", objective(task, name), settings, steps=6, lines=parts, **signal)
    resumed = train(tmp_path / "parts", objective(task, name), settings, steps=6, lines=parts)
    assert tensor_files.sha256(resumed.state_dict()) == tensor_files.sha256(expected.state_dict())
    assert [(x["step"], x["loss"], x["grad_norm"]) for x in parts] == [(x["step"], x["loss"], x["grad_norm"]) for x in whole]
    start = objective(task, name).state_dict()
    moved = {k for k, v in expected.state_dict().items() if not torch.equal(v, start[k])}
    assert {k for k in start if k.endswith("running_mean") or k == "center"} <= moved
    assert task == "simclr" or any(k.startswith("teacher.0.") and k.endswith("weight") for k in moved)


class Shaky(Learner):
    """An objective whose loss is multiplied at some steps."""

    def __init__(self, inner, factors):
        super().__init__()
        self.inner, self.factors = inner, factors
        self.after_step = inner.after_step

    def forward(self, batch):
        loss, shown = self.inner(batch)
        return Loss(loss.total * self.factors.get(batch["rows"].step, 1), loss.n), shown


@pytest.mark.parametrize(("task", "name"), [("byol", "resnet"), ("dino", "cnn")])
def test_a_skipped_step_leaves_teachers_and_statistics_as_they_were(tmp_path, task, name):
    model, seen = Shaky(objective(task, name), {2: math.inf, 3: math.nan}), []
    train(tmp_path, model, loop(lr=1e-3, log_every=1), steps=6, stop=lambda: seen.append(tensor_files.sha256(model.state_dict())))
    assert seen[1] == seen[2] == seen[3]
    assert len(set(seen)) == 4


def test_recovery_goes_back_to_the_statistics_before_the_good_step(tmp_path, monkeypatch):
    model, seen, kept = Shaky(objective("dino", "resnet"), {0: 2.0, 3: math.inf, 4: math.inf}), [], {}

    class Enough(Exception):
        pass

    def save(path, tensors, state, steps, layout):
        kept.update(tensors=tensor_files.part(tensors, "model."), step=state.step)
        raise Enough

    monkeypatch.setattr(recovery, "save", save)
    settings = loop(lr=1e-3, max_skipped=2)
    made = plan(tmp_path, settings, steps=8, stop=lambda: seen.append(tensor_files.sha256(model.state_dict())))
    with pytest.raises(Enough):
        fit(model, batches_for(model.inner), dataclasses.replace(made, recover=True))
    assert kept["step"] > 0
    assert tensor_files.sha256(kept["tensors"]) == seen[kept["step"] - 1]


@pytest.mark.parametrize("task", OBJECTIVES)
@pytest.mark.parametrize("name", FAMILIES)
def test_no_parameter_is_dead(name, task):
    """One backward pass gives every parameter that an objective trains a gradient."""
    model = objective(task, name, 8)
    model.train()
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    split = data(20)
    (batch,) = next(batches_for(model, size=4, split=split).iterate(0, 1))
    small = nn.functional.interpolate
    batch["inputs"] = images
    if "views" in batch:
        batch["views"] = torch.stack([small(v, (8, 8)) for v in batch["views"]])
    loss, _ = model(batch)
    (loss.total / loss.n).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in trained.items() if grad is None or not grad.isfinite().all()] == []
    assert [n for n, grad in trained.items() if not grad.any()] == []
    assert len(trained) > 5


def lars_by_hand(weights, gradients, rates, decay, momentum=0.9, trust=0.001):
    """You et al. 2017, algorithm 1; a vector (bias, norm) has neither decay nor local rate, as in SimCLR."""
    w, v = weights.copy(), np.zeros_like(weights)
    for gradient, rate in zip(gradients, rates, strict=True):
        update, local = gradient, 1.0
        if w.ndim > 1:
            update = gradient + decay * w
            if np.linalg.norm(w) > 0 and np.linalg.norm(update) > 0:
                local = trust * np.linalg.norm(w) / np.linalg.norm(update)
        v = momentum * v + rate * local * update
        w = w - v
    return w


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64))
        self.zeros = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))


def test_lars_against_the_paper():
    """Ten steps with a warm-up and a cosine; its state goes on exactly."""
    settings = loop(optimizer="lars", lr=2.0, weight_decay=0.1, warmup=0.3)
    model = Layer()
    start = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    gradients = [{n: torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()} for _ in range(10)]
    rates = [lr_at(step, 10, settings) for step in range(10)]
    optimizer = optim.build(optim.groups(model, settings, lambda name: 0, 0), settings)
    assert isinstance(optimizer, optim.Lars)
    for step in range(10):
        if step == 6:  # stop, and go on with new objects
            state = {f"{i}.{k}": v.clone() for i, kinds in optimizer.state_dict()["state"].items() for k, v in kinds.items()}
            weights, model = model.state_dict(), Layer()
            model.load_state_dict(weights)
            optimizer = optim.build(optim.groups(model, settings, lambda name: 0, 0), settings)
            optim.load(optimizer, state, settings)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[step][name].clone()
        optimizer.step()
    for name, parameter in model.named_parameters():
        expected = lars_by_hand(start[name], [g[name].numpy() for g in gradients], rates, 0.1)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-10, err_msg=name)


def test_what_no_optimizer_decays():
    """Vectors, and Swin's tables of relative positions (Liu et al. 2021, their own recipe)."""
    encoder = encoder_of("swin")
    groups = optim.groups(encoder, loop(weight_decay=0.3, layer_decay=0.5), encoder.depth_of, encoder.depth + 1)
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    of = {n: decays[id(p)] for n, p in encoder.named_parameters()}
    assert {of[n] for n in of if "relative_position_bias_table" in n or n.endswith(".bias")} == {0.0}
    assert {of[n] for n in of if n.endswith(("query.weight", "dense.weight", "projection.weight"))} == {0.3}
    assert {round(math.log2(g["lr_scale"])) for g in groups} == set(range(-encoder.depth - 1, 1))
