"""Processes that have a part of the weights each train as one does that has them all."""

import itertools
import os

import pytest
import torch
import torch.distributed as dist
from test_processes import CASES, PATCHES, SMALL, TEXTS, close, in_two, prepared, trained
from texts import story
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ptmrun.compose import compose
from ptmrun.errors import Interrupted, UserError
from ptmrun.loss import Learner, Loss
from ptmrun.storage import tensor_files
from ptmrun.training.layout import Parts
from ptmrun.training.processes import ALONE, Lost, Processes

torch.ones(1, requires_grad=True).sum().backward()  # before there are groups, else no process that is forked later can


def arguments(*overrides, steps=3):
    """Of `trained`."""
    if "dataset=text" in overrides:
        with open("corpus.txt", "w", encoding="utf-8") as file:
            file.write("\n\n".join(story(24, 6)))
    context = prepared("stage=pretrain", *overrides)
    return context, context.objective, context.data.corpus, context.cfg.pretrain, steps


@pytest.mark.parametrize("task", ["mae", "mlm", "byol"])
def test_parts_are_the_whole(tmp_path, task):
    """An objective that computes a block by its parts, one with weights that stand twice, and one with a teacher."""
    own = PATCHES if task == "byol" else CASES[task]
    given = arguments(f"task={task}", *own, "pretrain.clip=0.5", "pretrain.ema=0.9")
    alone = trained(*given, tmp_path / "alone")
    both = in_two(lambda p: trained(*given, tmp_path / "both", p, shard=True), tmp_path)
    assert any(not torch.equal(v, given[1]().state_dict()[k]) for k, v in alone[0].items())
    close(both, alone)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_every_optimizer_takes_the_same_steps(tmp_path, optimizer):
    """As in two processes with all weights each, which add up the same numbers: and the checkpoints are the same, by name too."""
    changes = [f"pretrain.optimizer={optimizer}", "pretrain.clip=0.5", "pretrain.ema=0.9", "pretrain.accumulate=2"]
    given = arguments("task=mlm", *TEXTS, "model=bert", *changes, "device.recompute=true")

    def until(folder, p, **more):
        trained(*given, tmp_path / folder, p, save_last=True, recover=True, **more)
        return tensor_files.load(tmp_path / folder / "state.safetensors") if p.main else None

    whole, parts = (in_two(lambda p, s=s: until(str(s), p, shard=s), tmp_path) for s in (False, True))
    assert {k: v.shape for k, v in parts[0].items()} == {k: v.shape for k, v in whole[0].items()}
    close((parts[0], [parts[1]["last"]]), (whole[0], [whole[1]["last"]]), 1e-5)


def test_another_number_goes_on_with_the_same_files(tmp_path):
    """Two parts, then one process, then two parts: as one process all the way, but for rounding."""
    given = arguments("task=mlm", *TEXTS, "model=bert", "pretrain.ema=0.9")

    def until(step, p=ALONE, **more):
        calls = itertools.count(1)
        with pytest.raises(Interrupted):
            trained(*given, tmp_path / "parts", p, stop=lambda: 15 if next(calls) == step else None, **more)

    in_two(lambda p: until(1, p, shard=True), tmp_path)
    until(1)
    end = in_two(lambda p: trained(*given, tmp_path / "parts", p, shard=True), tmp_path)
    alone = trained(*given, tmp_path / "alone")
    close(end, (alone[0], alone[1][2:]))


def test_one_that_dies_ends_the_other_and_going_on_is_bit_exact(tmp_path):
    """Killed in the forward pass of the third step."""
    given = arguments("task=mlm", *TEXTS, "model=bert", "pretrain.optimizer=adamw", "pretrain.checkpoint_every=0", steps=4)
    whole = in_two(lambda p: trained(*given, tmp_path / "whole", p, shard=True), tmp_path)

    def killed(p):
        make, passes = given[1], itertools.count(1)

        def dying():
            model = make()
            if not p.main:
                hidden = model.encoder.hidden
                model.encoder.hidden = lambda x: os.kill(os.getpid(), 9) if next(passes) == 5 else hidden(x)
            return model

        with pytest.raises(Lost, match="lost"):
            trained(given[0], dying, *given[2:], tmp_path / "both", p, shard=True)

    in_two(killed, tmp_path, fails=True)
    assert tensor_files.load(tmp_path / "both/state.safetensors")[1]["step"] == 2
    again = in_two(lambda p: trained(*given, tmp_path / "both", p, shard=True), tmp_path)
    assert tensor_files.sha256(again[0]) == tensor_files.sha256(whole[0])
    assert again[1] == whole[1][2:]


class Block(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x)


class Blocks(Learner):
    """Two blocks, of which the second is computed by its parts, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        self.seen += 1
        return Loss(self.head(self.blocks[1].inner(self.blocks[0](batch))).square().sum(), len(batch)), {}


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_what_is_trained_stands_in_parts_and_the_model_as_it_was():
    model, batch = Blocks(), torch.arange(6.0).view(2, 3)
    layout = Parts(Processes(), 1)
    parts = layout.trained(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {type(p).__name__ for p in parts.parameters()} == {"DTensor"}
    assert {type(p).__name__ for p in model.parameters()} == {"Parameter"}
    (parts(batch)[0].total / 2).backward()
    (model(batch)[0].total / 2).backward()
    gradients = layout.whole({name: p.grad for name, p in parts.named_parameters()})
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    assert layout.number(nn.utils.clip_grad_norm_(parts.parameters(), 1.0)) == pytest.approx(
        float(nn.utils.get_total_norm(p.grad for p in model.parameters()))
    )
    torch.optim.SGD(parts.parameters(), lr=1.0).step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model.seen.fill_(7)
    layout.take_buffers(model)
    assert parts.seen == 7
    layout.give(model)
    for name, value in layout.whole(dict(parts.state_dict())).items():
        assert torch.equal(model.state_dict()[name], value)
    assert not torch.equal(model.head.weight, before["head.weight"])
    like = parts.head.weight
    assert torch.equal(layout.own(before["head.weight"], like).full_tensor(), before["head.weight"])
    assert layout.own(batch, like) is batch


def test_what_cannot_lie_in_parts_is_refused():
    with pytest.raises(UserError, match=r"device.shard=true: a step has 3 micro-batches, which 2 processes cannot share equally"):
        Parts(Processes(0, 2), 3)
    model = Blocks()
    model.scale = nn.Parameter(torch.zeros(()))
    with pytest.raises(UserError, match=r"device.shard=true: scale is a single number"):
        Parts(Processes(), 1).trained(model)
    two = "device.processes=2"
    mistakes = {
        ("model=vit",): r"device.shard=true: each of several processes has a part .*; give device.processes=2 or more too",
        ("model=vit", two, "device.compile=true"): r"device.shard=true device.compile=true: compiled code gathers no weights",
        ("model=vit", two, "task=simclr"): r"task=simclr needs its weights whole; there is: task=bestrq, byol, clm",
        ("model=vit", two, "finetune=adalora"): r"finetune=adalora needs its weights whole; there is: finetune=adapter, ",
        ("model=vit", two, "pretrain.accumulate=3"): r"pretrain.accumulate=3 micro-batches cannot be shared equally by",
    }
    for words, line in mistakes.items():
        with pytest.raises(UserError, match=line):
            compose(["task=mim", *words, "device.shard=true"])
    compose(["model=vit", "task=mim", two, "device.shard=true", "finetune=adalora", "stage=pretrain"])
    with pytest.raises(UserError, match=r"model=cnn has no blocks of transformers' that could be taken apart; leave it out"):
        prepared("stage=pretrain", *SMALL, two, "device.shard=true", "task=byol").objective()
