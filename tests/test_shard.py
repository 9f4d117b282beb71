"""Processes that have a part of the weights each train as one does that has them all."""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from conftest import TINY
from test_processes import (
    CASES,
    PATCHES,
    SMALL,
    TEXTS,
    Forked,
    Steps,
    close,
    in_two,
    lines,
    loop_of,
    plan,
    prepared,
    trained,
    weights,
)
from texts import story
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ptmrun.compose import compose
from ptmrun.errors import Interrupted, UserError
from ptmrun.loss import Learner, Loss
from ptmrun.runs.folder import Run
from ptmrun.stages import company
from ptmrun.stages.trials import Trial, chosen_labels, new_model
from ptmrun.storage import part_files, tensor_files
from ptmrun.training.layout import Parts
from ptmrun.training.loop import fit
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
    plain = ["pretrain.optimizer=sgd", "pretrain.lr=0.05"]  # AdamW enlarges the rounding of gradients that are nearly zero
    given = arguments(f"task={task}", *own, *plain, "pretrain.clip=0.5", "pretrain.ema=0.9")
    alone = trained(*given, tmp_path / "alone")
    both = in_two(lambda p: trained(*given, tmp_path / "both", p, shard=True), tmp_path)
    assert any(not torch.equal(v, given[1]().state_dict()[k]) for k, v in alone[0].items())
    close(both, alone)


def test_fine_tuning_of_frozen_weights_in_parts(tmp_path):
    """LoRA: most of what lies in parts is not trained."""
    rows = [f'"{text}",{"ab"[i % 3 == 0]}' for i, text in enumerate(" ".join(story(9, 7)).split("\n"))]
    Path("texts.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    own = ["model=bert", "model.length=16", "dataset=text", "dataset.root=texts.csv", "dataset.val_fraction=0.3", "finetune=lora"]
    more = ["finetune.batch_size=10", "finetune.accumulate=4", "finetune.optimizer=sgd", "downstream.labels_per_class=null"]
    context, trial = prepared("stage=finetune+evaluate", *own, *more), Trial(None, "tuned", 5)
    loop = context.cfg.finetune.model_copy(update={"layer_decay": 1.0, "log_every": 1})
    given = (context, lambda: new_model(context, trial)[0], chosen_labels(context, trial), loop, 3)
    alone = trained(*given, tmp_path / "alone")
    close(in_two(lambda p: trained(*given, tmp_path / "both", p, shard=True), tmp_path), alone)


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 1e-4), ("lars", 1e-5)])
def test_every_optimizer_takes_the_same_steps(tmp_path, optimizer, tolerance):
    """As in two processes with all weights each, which add up the same numbers: and the checkpoints are the same, by name too."""
    changes = [f"pretrain.optimizer={optimizer}", "pretrain.clip=0.5", "pretrain.ema=0.9", "pretrain.accumulate=2"]
    given = arguments("task=mlm", *TEXTS, "model=bert", *changes, "device.recompute=true")

    def until(folder, p, **more):
        trained(*given, tmp_path / folder, p, save_last=True, recover=True, **more)
        return part_files.load(tmp_path / folder / "state.safetensors") if p.main else None

    whole, parts = (in_two(lambda p, s=s: until(str(s), p, shard=s), tmp_path) for s in (False, True))
    assert {k: v.shape for k, v in parts[0].items()} == {k: v.shape for k, v in whole[0].items()}
    # AdamW's steps are as large where a gradient is but rounding, as that of the keys' bias
    close((parts[0], [parts[1]["last"]]), (whole[0], [whole[1]["last"]]), tolerance)


class Block(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x)


class Blocks(Learner):
    """Two blocks, of which the second is computed by its parts, and a head of one row, which one of two processes has."""

    def __init__(self, dies=None):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.dies = None, dies
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        self.seen += 1
        if self.seen == self.dies:
            os.kill(os.getpid(), 9)
        y = self.head(self.blocks[1].inner(self.blocks[0](batch["x"])))
        return Loss(y.square().sum(), len(y)), {}


def fitted(folder, p=ALONE, source=None, lines=None, steps=6, dies=None, **more):
    """(weights and buffers, metrics without times)"""
    model, lines = Blocks(dies), [] if lines is None else lines
    loop = loop_of(optimizer="adamw", lr=0.01, checkpoint_every=0.0, max_skipped=1)
    fit(model, source or Steps(), plan(loop, steps, 16, folder, p, lines, shard=p.size > 1, **more))
    return dict(model.state_dict()), [{k: v for k, v in x.items() if k not in ("samples_per_s", "data_wait")} for x in lines]


@pytest.fixture(scope="module", autouse=True)
def first_group(tmp_path_factory):
    """Caches of PyTorch's keep the first group that DTensors lie in, and its connections: who waits there for one that has ended
    waits for ever. Of groups after it nothing is kept."""
    folder = tmp_path_factory.mktemp("first")
    in_two(lambda p: fitted(folder, p, steps=2, recover=True), folder)


def test_another_number_goes_on_with_the_same_files(tmp_path):
    """Two parts, then one process, then two parts: as one process all the way, but for rounding."""
    alone, lines = fitted(tmp_path / "alone"), []

    def until(step, p=ALONE):
        calls = itertools.count(1)
        with pytest.raises(Interrupted):
            fitted(tmp_path / "parts", p, lines=lines, stop=lambda: 15 if next(calls) == step else None)

    in_two(lambda p: until(2, p), tmp_path)
    until(2)
    close(in_two(lambda p: fitted(tmp_path / "parts", p, lines=lines), tmp_path), alone)
    files = [part_files.load(tmp_path / folder / "state.safetensors")[0] for folder in ("parts", "alone")]
    assert {k: v.shape for k, v in files[0].items()} == {k: v.shape for k, v in files[1].items()}


def test_one_that_dies_ends_the_other_and_going_on_is_bit_exact(tmp_path):
    """Killed in the forward pass of the third step, while the other one waits for its part of the weights."""
    whole = in_two(lambda p: fitted(tmp_path / "whole", p), tmp_path)

    def killed(p):
        with pytest.raises(Lost, match="lost"):
            fitted(tmp_path / "both", p, dies=None if p.main else 10)

    in_two(killed, tmp_path, fails=True)
    step = tensor_files.load(tmp_path / "both/state.safetensors")[1]["step"]
    assert step == 2
    again = in_two(lambda p: fitted(tmp_path / "both", p), tmp_path)
    assert tensor_files.sha256(again[0]) == tensor_files.sha256(whole[0])
    assert again[1] == whole[1][step:]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_lies_in_parts_which_torch_reads_too(tmp_path):
    """None of the files has a whole matrix but what the head's one row is; torch.distributed.checkpoint finds the same."""
    in_two(lambda p: fitted(tmp_path, p, save_last=True), tmp_path)
    file = tmp_path / "state.safetensors"
    whole, state = part_files.load(file)
    pointer, named = tensor_files.load(file)
    assert pointer == {}
    assert state == {k: v for k, v in named.items() if k != "parts"}
    [folder] = part_files.folders(file)
    parts = [tensor_files.load(part_files.part(folder, rank, 2))[0] for rank in range(2)]
    shapes = [list(part["optimizer.0.exp_avg"].shape) for part in parts]
    assert shapes == [[2, 3], [1, 3]]
    assert [len(part["model.head.weight"]) for part in parts] == [1, 0]
    found = {name: torch.full_like(value, -1) for name, value in whole.items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert tensor_files.sha256(found) == tensor_files.sha256(whole)
    assert named["parts"] == {"folder": "state.parts-6", "of": 2}


def test_parts_are_a_checkpoint_when_all_are_written(tmp_path, monkeypatch):
    """Ended between the parts and the file that names them: the checkpoint before stays, and going on from it is bit-exact."""
    whole = in_two(lambda p: fitted(tmp_path / "whole", p), tmp_path)
    commit, save, calls = part_files.commit, tensor_files.save, itertools.count(1)

    def ends(file, folder, size, state):
        assert all(part_files.part(file.with_name(folder), rank, size).exists() for rank in range(size))
        if next(calls) == 3:
            raise UserError("ended")
        commit(file, folder, size, state)

    def ended(p):
        if not p.main:  # writes late
            monkeypatch.setattr(tensor_files, "save", lambda *words, **more: (time.sleep(0.2), save(*words, **more)))
        monkeypatch.setattr(part_files, "commit", ends)
        with pytest.raises(UserError, match="ended" if p.main else "lost"):
            fitted(tmp_path / "both", p)

    in_two(ended, tmp_path)
    monkeypatch.setattr(part_files, "commit", commit)
    file = tmp_path / "both/state.safetensors"
    assert part_files.load(file)[1]["step"] == 2
    assert {folder.name for folder in part_files.folders(file)} == {"state.parts-2", "state.parts-3"}
    again = in_two(lambda p: fitted(tmp_path / "both", p), tmp_path)
    assert tensor_files.sha256(again[0]) == tensor_files.sha256(whole[0])
    assert len(part_files.folders(file)) == 1
    fitted(tmp_path / "both", save_last=True, steps=7)
    assert part_files.folders(file) == []
    assert tensor_files.load(file)[1]["step"] == 7


def test_parts_that_are_spoilt_are_refused(tmp_path):
    in_two(lambda p: fitted(tmp_path, p, save_last=True), tmp_path)
    file = tmp_path / "state.safetensors"
    [folder] = part_files.folders(file)
    _, state = tensor_files.load(file)
    part = part_files.part(folder, 1, 2)
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)

    def refused(p):
        with pytest.raises(UserError, match="lost" if p.main else "part-00002-of-00002.safetensors: has changed since"):
            fitted(tmp_path, p, steps=7)

    in_two(refused, tmp_path)
    part.unlink()
    with pytest.raises(UserError, match=r"-of-00002.safetensors: missing; put it back, or delete .*state.safetensors"):
        part_files.load(file)
    for wrong in ({"folder": "../other.parts-1", "of": 2}, {"folder": "state.parts-6", "of": 0}, {"of": 2}, "state.parts-6"):
        tensor_files.save(file, {}, {**state, "parts": wrong})
        with pytest.raises(UserError, match="what it says of its parts is not as ptmrun writes it; refused"):
            part_files.load(file)
    (tmp_path / "linked.parts-1").symlink_to(folder)
    tensor_files.save(file, {}, {**state, "parts": {"folder": "linked.parts-1", "of": 2}})
    with pytest.raises(UserError, match=r"linked.parts-1: a link; refused"):
        part_files.load(file)


def test_all_go_back_together(tmp_path):
    """After a step that is not finite to the last good one; the weights that are saved at the end are whole."""

    def recovered(folder, p=ALONE):
        with pytest.raises(UserError, match="not finite" if p.main else "lost"):
            fitted(folder, p, Steps(bad=(2, 3)), recover=True, bad=folder / "bad.safetensors")
        return tensor_files.load(folder / "bad.safetensors") if p.main else None

    alone = recovered(tmp_path / "alone")
    both = in_two(lambda p: recovered(tmp_path / "both", p), tmp_path)
    assert both[1] == alone[1]
    close((both[0], []), (alone[0], []))


def test_looks_see_whole_averaged_weights(tmp_path):
    """At each look the main process's model has them; what a look changes of its buffers stays."""

    def looked(folder, p=ALONE):
        model, looks = Blocks(), []

        def look(step):
            looks.append({k: v.clone() for k, v in model.state_dict().items()})
            model.seen.fill_(100 * step)

        more = {"probe": look} if p.main else {}
        fit(model, Steps(), plan(loop_of(), 4, 16, folder, p, [], shard=p.size > 1, probe_at=frozenset({2, 4}), **more))
        return looks[0] | {f"then {k}": v for k, v in looks[1].items()} | {"end": model.seen} if p.main else None

    close((in_two(lambda p: looked(tmp_path / "both", p), tmp_path), []), (looked(tmp_path / "alone"), []))


def test_a_run_goes_on_without_parts(monkeypatch, ptmrun):
    """2 parts -> 1 process -> 2 parts, stopped while it pretrains and while it fine-tunes; with looks, and from scratch."""
    monkeypatch.setattr(company.Company, "start", lambda self: self.started.append(Forked(self, 1)))
    few = ["model=vit", "model.size=micro", "task=mim", "pretrain.steps=4", "finetune.seeds=1", "evaluate.baselines=[scratch]"]
    few += ["pretrain.log_every=1", "finetune.log_every=1", "pretrain.optimizer=sgd", "finetune.optimizer=sgd"]
    assert ptmrun(*TINY, *few, "pretrain.accumulate=2", "finetune.accumulate=2")[0] == 0
    whole = Path("outputs/latest").resolve()
    metric, seen = Run.metric, []

    def signalled(self, line):
        metric(self, line)
        seen.append(line)
        if len(seen) in (3, 9):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "metric", signalled)
    assert ptmrun(*TINY, *few, "device.processes=2", "device.shard=true")[0] == 143
    run = Path("outputs/latest").resolve()
    assert ptmrun("resume", run, "device.processes=1", "device.shard=false")[0] == 143
    assert seen[-1]["stage"] == "finetune"
    code, out, err = ptmrun("resume", run, "device.processes=2", "device.shard=true")
    assert code == 0, err
    assert "nothing in this run reads it" not in out
    close((weights(run), lines(run)), (weights(whole), lines(whole)), 1e-4)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_what_is_trained_stands_in_parts_and_the_model_as_it_was():
    model, batch = Blocks(), {"x": torch.arange(6.0).view(2, 3)}
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
    assert layout.own(batch["x"], like) is batch["x"]


def test_what_cannot_lie_in_parts_is_refused():
    with pytest.raises(UserError, match=r"device.shard=true: a step has 3 micro-batches, which 2 processes cannot share equally"):
        Parts(Processes(0, 2), 3)
    model = Blocks()
    model.scale = nn.Parameter(torch.zeros(()))
    with pytest.raises(UserError, match=r"device.shard=true: scale is a single number"):
        Parts(Processes(), 1).trained(model)
    model.compares = True
    with pytest.raises(UserError, match=r"device.shard=true: this objective compares all samples of a batch"):
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
