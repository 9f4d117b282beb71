"""Several processes train as one does: for every objective and for fine-tuning, through kills and other numbers of them."""

import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import CNN, TINY
from texts import story
from torch import nn

from ptmrun import cli
from ptmrun.commands import estimate
from ptmrun.compose import compose
from ptmrun.config import choices
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.split import Split
from ptmrun.errors import Interrupted, UserError
from ptmrun.loss import Learner, Loss
from ptmrun.runs.folder import Run
from ptmrun.stages import company, compute
from ptmrun.stages.context import batches_of
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import Trial, chosen_labels, new_model
from ptmrun.storage import tensor_files
from ptmrun.storage.files import end_with_parent
from ptmrun.training.loop import fit
from ptmrun.training.plan import Plan
from ptmrun.training.processes import ALONE, Lost, Processes, buckets
from ptmrun.training.signals import Stop

COUNTER = itertools.count()
SETTINGS = [
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
    "pretrain.optimizer=sgd",  # AdamW makes as large a step of a gradient that is rounding alone
    "pretrain.lr=0.01",
    "pretrain.batch_size=12",
    "pretrain.accumulate=4",
    "pretrain.log_every=1",
    "pretrain.clip=null",
]
SMALL = ["dataset=digits", "dataset.limit=100", "model=cnn", "model.width=8", "model.hidden=16"]
IMAGES = [*SMALL, "task.hidden=32", "task.projection=16"]
PATCHES = ["dataset=digits", "dataset.limit=100", "model=vit", "model.size=micro", "model.dropout=0.1"]
TEXTS = ["dataset=text", "dataset.root=corpus.txt", "model.length=32", "model.dropout=0.1"]
DRAWN = ["model=dalle", "model.codes=16", "dataset.drawings=1", "dataset.limit=60", "dataset.test_limit=10"]
SOUNDS = [
    "dataset=audiofolder",
    "dataset.root=clips",
    "model=wav2vec2",
    "model.shape=[32,2,2]",
    "model.dropout=0.1",
    "task.codes=32",
]
CASES = {
    "supervised": [*SMALL, "task.mixup=0.2", "task.cutmix=1"],
    "simclr": IMAGES,
    "byol": IMAGES,
    "dino": [*SMALL, "task.hidden=32"],
    "mim": PATCHES,
    "mae": PATCHES,
    "simmim": PATCHES,
    "clm": [*TEXTS, "model=gpt"],
    "mlm": [*TEXTS, "model=bert"],
    "mlm_nsp": [*TEXTS, "model=bert"],
    "plm": [*TEXTS, "model=xlnet"],
    "denoising": [*TEXTS, "model=transformer"],
    "clip": ["model=clip", "model.text_options=['shape:[32,1,2]']", "dataset.drawings=1", "dataset.limit=60"],
    "vq": DRAWN,
    "dvae": DRAWN,
    "dalle": DRAWN,
    "wav2vec2": SOUNDS,
    "bestrq": SOUNDS,
}


def in_two(work, tmp_path, fails=False):
    """What work(processes) gives in the main one of two processes; the other one is forked."""
    place = tmp_path / f"meeting-{next(COUNTER)}"
    place.mkdir()
    child = os.fork()
    if not child:
        end_with_parent()
        try:
            work(company.meet(1, 2, place, lambda error: "lost"))
        except BaseException:
            (place / "error").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    try:
        result = work(company.meet(0, 2, place, lambda error: "lost"))
    except BaseException as error:
        os.kill(child, signal.SIGKILL)  # it may wait for this one, whose connections the error holds
        os.waitpid(child, 0)
        if (place / "error").exists():
            raise AssertionError((place / "error").read_text()) from error
        raise
    finally:
        dist.destroy_process_group()
    gc.collect()  # what still holds the group: the other one waits as long as that is there
    _, status = os.waitpid(child, 0)
    if not fails:
        assert status == 0, (place / "error").read_text()
    return result


def plan(loop, steps, size, folder, processes, lines, **more):
    return Plan(
        loop=loop,
        steps=steps,
        seed=0,
        purpose="pretrain",
        samples=100,
        batch_size=size,
        depth_of=lambda _: 0,
        depth=1,
        autocast=contextlib.nullcontext,
        file=folder / "state.safetensors",
        metric=lines.append,
        cut=lambda step: lines.__setitem__(slice(None), [x for x in lines if x["step"] <= step]),
        show=lambda step, values: None,
        processes=processes,
        **{"stop": lambda: None, **more},
    )


def trained(context, make, split, loop, steps, folder, processes=ALONE, **more):
    """(weights and buffers, metrics without times) after so many steps."""
    model, lines = make(), []
    batches = batches_of(context, model, split, loop, 0, "pretrain")
    fit(model, batches, plan(loop, steps, batches.batch_size, folder, processes, lines, **more))
    times = ("samples_per_s", "data_wait")
    return dict(model.state_dict()), [{k: v for k, v in line.items() if k not in times} for line in lines]


def close(one, other, tolerance=2e-5):
    assert one[0].keys() == other[0].keys()
    for name, value in other[0].items():
        torch.testing.assert_close(one[0][name], value, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")
    assert len(one[1]) == len(other[1])
    for line, expected in zip(one[1], other[1], strict=True):
        words = {k: v for k, v in expected.items() if isinstance(v, str)}
        assert {k: line.pop(k) for k in words} == words
        assert line == pytest.approx({k: v for k, v in expected.items() if k not in words}, rel=1e-4, abs=1e-5)


def prepared(*overrides):
    cfg = compose([*SETTINGS, *overrides])
    return prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())


def test_every_objective_has_a_case():
    assert set(CASES) == set(choices.names("task"))


@pytest.mark.parametrize("task", CASES)
def test_two_processes_are_one(tmp_path, task):
    """Three steps of four micro-batches, two in each process: weights, buffers, metrics."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(story(24, 6)), encoding="utf-8")
    if CASES[task] is SOUNDS:
        pytest.importorskip("soundfile")
        from test_audio import folder as clips

        clips()
    context = prepared(f"task={task}", "stage=pretrain", *CASES[task])
    arguments = (context, context.objective, context.data.corpus, context.cfg.pretrain, 3)
    alone = trained(*arguments, tmp_path / "alone")
    both = in_two(lambda processes: trained(*arguments, tmp_path / "both", processes), tmp_path)
    assert any(not torch.equal(v, context.objective().state_dict()[k]) for k, v in alone[0].items())
    close(both, alone)


class Decoder:
    """Of images that are their own numbers, and which of them it has decoded."""

    size, seen = 2, None

    def batches(self, index_lists, workers):
        for indices in index_lists:
            self.seen = [*(self.seen or []), *indices]
            yield torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), None


@pytest.mark.parametrize("alphas", [(0.0, 0.0), (1.0, 0.0)])
def test_a_process_decodes_no_images_but_its_own(alphas):
    """And those that they are mixed with."""

    def batches():
        split = Split(None, Decoder(), torch.arange(20), torch.arange(20) % 2)
        options = compose([]).dataset.augment
        return Batches(split, lambda x: x.float(), options, 1.0, 8, 4, 0, "test", None, alphas)

    whole, own = batches(), batches()
    for every, mine in zip(whole.iterate(0, 3), own.iterate(0, 3, slice(1, 2)), strict=True):
        assert len(mine) == 1
        for name, value in mine[0].items():
            assert torch.equal(value, every[1][name]) if isinstance(value, torch.Tensor) else value == every[1][name]
    assert len(whole.split.decoder.seen) == 3 * 8
    assert len(own.split.decoder.seen) == 3 * 2 * (2 if any(alphas) else 1)


@pytest.mark.parametrize("method", ["full", "adalora"])
def test_fine_tuning_in_two_processes_is_that_in_one(tmp_path, method):
    """With classes that weigh differently and dropout; in each of them AdaLoRA drops the same ranks."""
    model = ["model=bert", "model.length=16", "dataset=text", "dataset.root=texts.csv"] if method == "adalora" else PATCHES
    rows = [f'"{text}",{"ab"[i % 3 == 0]}' for i, text in enumerate(" ".join(story(9, 7)).split("\n"))]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    more = ["finetune.class_weights=balanced", "finetune.batch_size=10", "finetune.accumulate=3", "finetune.optimizer=sgd"]
    more += ["dataset.val_fraction=0.3", "downstream.labels_per_class=null", "finetune.steps=20"]
    context = prepared("stage=finetune+evaluate", *model, "model.dropout=0.1", f"finetune={method}", *more)
    trial = Trial(None, "tuned", 5)
    steps = 20 if method == "adalora" else 4
    loop = context.cfg.finetune.model_copy(update={"layer_decay": 1.0, "log_every": 1})
    arguments = (context, lambda: new_model(context, trial)[0], chosen_labels(context, trial), loop, steps)
    alone = trained(*arguments, tmp_path / "alone")
    close(in_two(lambda processes: trained(*arguments, tmp_path / "both", processes), tmp_path), alone)


class Line(Learner):
    """y = w x, with a parameter that only even samples need, and batch normalisation that is called twice."""

    def __init__(self):
        super().__init__()
        self.encoder = None
        self.w, self.even = (nn.Parameter(torch.ones(3)) for _ in range(2))
        self.unused = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(3, momentum=0.3)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))

    def forward(self, batch):
        x = self.norm(self.norm(batch["x"]) + batch["x"])
        even = batch["ids"] % 2 == 0
        self.seen += torch.stack([even.sum(), (~even).sum()])
        y = x * self.w + (x * self.even * even[:, None] if even.any() else 0)
        return Loss(y.square().sum(), len(x)), {"largest": Loss(x.detach().abs().max(), 1)}


class Steps:
    """Steps of micro-batches of 4 even and of 4 odd samples, in turn; `bad` (step, micro-batch) is not finite."""

    def __init__(self, micros=4, bad=None):
        self.micros, self.bad = micros, bad

    def iterate(self, start, stop, own=slice(None)):
        for step in range(start, stop):
            yield [self.micro(step, i) for i in range(self.micros)][own]

    def micro(self, step, i):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + i))
        return {"x": x / 0 if (step, i) == self.bad else x, "ids": torch.arange(4) * 2 + i % 2}


LINE = {
    "optimizer": "sgd",
    "lr": 0.05,
    "log_every": 1,
    "schedule": "constant",
    "warmup": 0.0,
    "accumulate": 4,
    "clip": 1.0,
    "ema": 0.9,
}


def loop_of(**changes):
    return compose(["pretrain.batch_size=16"]).pretrain.model_copy(update={**LINE, **changes})


def line(folder, steps=6, processes=ALONE, source=None, lines=None, loop=None, **more):
    model, lines = Line(), [] if lines is None else lines
    fit(model, source or Steps(), plan(loop or loop_of(), steps, 16, folder, processes, lines, **more))
    return dict(model.state_dict()), [{k: v for k, v in x.items() if k not in ("samples_per_s", "data_wait")} for x in lines]


@pytest.mark.parametrize("micros", [4, 3, 1])
def test_any_share_of_the_micro_batches(tmp_path, micros):
    """Two and two, one and two, none and one; where a parameter has no gradient in one process, or in none."""
    loop = loop_of(accumulate=micros, optimizer="adamw", weight_decay=0.1)
    alone = line(tmp_path / "alone", source=Steps(micros), loop=loop)
    close(in_two(lambda p: line(tmp_path / "both", processes=p, source=Steps(micros), loop=loop), tmp_path), alone)
    assert alone[0]["unused"] == 1
    assert alone[0]["seen"].sum() == 6 * 4 * micros
    assert alone[0]["norm.num_batches_tracked"] == 6 * 2 * micros


def test_another_number_of_processes_goes_on(tmp_path):
    """2 -> 1 -> 2: as one process all the way, but for rounding; and two that are not stopped are the same bit for bit."""
    alone, lines = line(tmp_path / "alone"), []
    whole = in_two(lambda p: line(tmp_path / "whole", processes=p), tmp_path)

    def until(step, processes=ALONE, where="parts"):
        calls = itertools.count(1)
        with pytest.raises(Interrupted):
            line(tmp_path / where, processes=processes, lines=lines, stop=lambda: 15 if next(calls) == step else None)

    in_two(lambda p: until(2, p), tmp_path)
    until(2)
    close(in_two(lambda p: line(tmp_path / "parts", processes=p, lines=lines), tmp_path), alone)
    lines.clear()
    in_two(lambda p: until(3, p, "same"), tmp_path)
    again = in_two(lambda p: line(tmp_path / "same", processes=p, lines=lines), tmp_path)
    assert tensor_files.sha256(again[0]) == tensor_files.sha256(whole[0])
    assert again[1] == whole[1]


def test_what_is_not_finite_in_one_process_is_skipped_by_all(tmp_path):
    bad = Steps(bad=(2, 3))
    alone = line(tmp_path / "alone", source=bad)
    close(in_two(lambda p: line(tmp_path / "both", processes=p, source=bad), tmp_path), alone)
    assert alone[1][-1]["skipped"] == 1


def test_all_go_back_together(tmp_path):
    """After a step that is not finite to the last good one, at half the rate; the batch that is saved at the end is whole."""
    bad, loop = Steps(bad=(2, 3)), loop_of(max_skipped=1)

    def recovered(folder, processes=ALONE):
        with pytest.raises(UserError, match="not finite" if processes.main else "lost"):
            line(folder, processes=processes, source=bad, loop=loop, recover=True, bad=folder / "bad.safetensors")
        return tensor_files.load(folder / "bad.safetensors") if processes.main else None

    alone = recovered(tmp_path / "alone")
    both = in_two(lambda p: recovered(tmp_path / "both", p), tmp_path)
    assert both[1] == alone[1]
    assert both[0].keys() == alone[0].keys()


def test_a_signal_to_any_of_them_stops_all_after_the_same_step(tmp_path):
    def signalled(processes):
        calls = itertools.count(1)
        with pytest.raises(Interrupted) as stopped:
            line(tmp_path / "both", processes=processes, stop=lambda: 15 if not processes.main and next(calls) == 3 else None)
        return stopped.value.signum

    assert in_two(signalled, tmp_path) == 15
    assert tensor_files.load(tmp_path / "both/state.safetensors")[1]["step"] == 3


def test_one_that_dies_ends_the_other_with_a_line(tmp_path):
    def killed(processes):
        calls = itertools.count(1)

        def stop():
            if not processes.main and next(calls) == 3:
                os.kill(os.getpid(), 9)

        with pytest.raises(Lost, match="lost"):
            line(tmp_path / "both", processes=processes, loop=loop_of(checkpoint_every=0.0), stop=stop)

    in_two(killed, tmp_path, fails=True)
    alone = line(tmp_path / "alone")
    close(in_two(lambda p: line(tmp_path / "both", processes=p), tmp_path), (alone[0], alone[1][2:]))


def test_what_is_sent_and_added_up_is_exact(tmp_path):
    tensors = {
        "bf16": torch.arange(5).bfloat16(),
        "flag": torch.tensor([True, False]),
        "number": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "turned": torch.arange(6.0).view(2, 3).T,
    }

    def exchanged(processes):
        note, copies = processes.send({"a": [1, None]}, tensors if processes.main else None)
        parts = [torch.full((2, 2), processes.rank + 1.0), torch.ones(3, dtype=torch.float64)]
        processes.add_up(parts)
        rows = processes.rows(torch.full((processes.rank + 1, 2), processes.rank).bfloat16(), torch.device("cpu"))
        return note, copies, parts, rows, processes.total([1, 0.5])

    note, copies, parts, rows, total = in_two(exchanged, tmp_path)
    assert note == {"a": [1, None]}
    assert all(torch.equal(copies[k], v) and copies[k].dtype == v.dtype for k, v in tensors.items())
    assert [p.flatten()[0].item() for p in parts] == [3, 2]
    assert rows.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert total == [2, 1.0]


def test_buckets_hold_tensors_of_one_type(monkeypatch):
    monkeypatch.setattr("ptmrun.training.processes.BUCKET", 5)
    sizes = [(3, torch.float32), (2, torch.float32), (1, torch.float32), (9, torch.float32), (1, torch.float64)]
    parts = list(buckets([torch.zeros(n, dtype=kind) for n, kind in sizes]))
    assert [[t.numel() for t in part] for part in parts] == [[3, 2], [1], [9], [1]]


def test_shares_cover_all_micro_batches():
    for size, micros in itertools.product(range(1, 6), range(8)):
        places = [i for rank in range(size) for i in range(micros)[Processes(rank, size).share(micros)]]
        assert places == list(range(micros))


RUN = [*TINY, *CNN, "task=byol", "pretrain.steps=6", "pretrain.log_every=1", "evaluate.baselines=[scratch]"]


class Forked:
    """What the main process has of another one, which is forked instead of started anew: that takes as long as all else."""

    def __init__(self, others, rank):
        self.code = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            code = self.follow(others, rank)
        finally:
            os._exit(code)

    def follow(self, others, rank):
        known = {company.MEETING: others.folder, company.PARENT: os.getppid(), "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({k: str(v) for k, v in known.items()}, WORLD_SIZE=str(others.size), LOCAL_WORLD_SIZE=str(others.size))
        with open(others.errors(rank), "w") as errors, open(os.devnull, "w") as nothing:
            sys.stdout, sys.stderr = nothing, errors
            try:
                return cli.run(["resume", str(others.run.folder.resolve())])
            except SystemExit as end:
                return end.code
            except BaseException:
                traceback.print_exc()
                return 1

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self):
        while self.poll() is None:
            pass


@pytest.fixture
def forked(monkeypatch):
    def start(self):
        self.started += [Forked(self, rank) for rank in range(1, self.size)]

    monkeypatch.setattr(company.Company, "start", start)


@pytest.fixture(autouse=True)
def _one_thread_again():
    yield
    torch.set_num_threads(1)


def weights(run):
    files = sorted([*run.glob("checkpoints/*.safetensors"), *run.glob("checkpoints/*/*.safetensors")])
    return {f"{file.parent.name}/{file.name}/{k}": v for file in files for k, v in tensor_files.load(file)[0].items()}


def lines(run):
    times = ("time", "samples_per_s", "data_wait")
    each = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in times} for line in each]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that is not disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(company.Company, "start", lambda self: self.started.append(Forked(self, 1)))
        assert cli.run([*RUN, "device.processes=2"]) == 0
    return (folder / "outputs/latest").resolve()


def same(run, other):
    assert tensor_files.sha256(weights(run)) == tensor_files.sha256(weights(other))
    assert lines(run) == lines(other)


def test_a_run_of_two_processes_is_that_of_one(whole, tmp_path, ptmrun):
    code, _, err = ptmrun(*RUN, "pretrain.accumulate=2", "finetune.accumulate=2")
    assert code == 0, err
    run = Path("outputs/latest")
    close((weights(run), lines(run)), (weights(whole), lines(whole)), 1e-4)
    assert json.loads((whole / "manifest.json").read_text())["status"] == "done"
    assert (whole / "config.yaml").read_text().count("accumulate: 2") == 2


def test_a_signal_saves_once_and_other_numbers_of_processes_go_on(whole, tmp_path, forked, monkeypatch, ptmrun):
    """2 -> 1 -> 2, stopped while it pretrains and while it fine-tunes."""
    metric, seen = Run.metric, []

    def signalled(self, line):
        metric(self, line)
        seen.append(line)
        if len(seen) in (4, 10):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "metric", signalled)
    assert ptmrun(*RUN, "device.processes=2")[0] == 143
    run = Path("outputs/latest").resolve()
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert ptmrun("resume", run, "device.processes=1")[0] == 143
    assert seen[-1]["stage"] == "finetune"
    assert ptmrun("resume", run, "device.processes=2")[0] == 0
    close((weights(run), lines(run)), (weights(whole), lines(whole)), 1e-4)


def test_kill_9_of_one_ends_all_and_resuming_ends_the_same(whole, tmp_path, monkeypatch, ptmrun):
    """The other process is started as a user's is."""
    start, metric, them = company.Company.start, Run.metric, []

    def started(self):
        start(self)
        them.append(self)

    def killing(self, line):
        metric(self, line)
        if line["step"] == 3 and len(them) == 1:
            them[0].started[0].kill()

    monkeypatch.setattr(company.Company, "start", started)
    monkeypatch.setattr(Run, "metric", killing)
    code, _, err = ptmrun(*RUN, "device.processes=2")
    run = Path("outputs/latest").resolve()
    assert code == 2
    assert err.startswith("ptmrun: device.processes: process 2 of 2 was ended by SIGKILL, as the system does where memory is")
    assert "Traceback" not in err
    assert json.loads((run / "manifest.json").read_text())["status"] == "failed"
    monkeypatch.setattr(company.Company, "start", lambda self: self.started.append(Forked(self, 1)))
    assert ptmrun("resume", run)[0] == 0
    same(run, whole)


@pytest.mark.parametrize("what", ["mistake", "bug"])
def test_what_goes_wrong_in_another_process_is_said_by_the_main_one(forked, monkeypatch, ptmrun, what):
    def failing(*_):
        raise UserError("data: the disk of this machine is gone") if what == "mistake" else ZeroDivisionError("of nothing")

    monkeypatch.setattr(company, "prepare", failing)
    code, _, err = ptmrun(*RUN, "device.processes=2", "stage=pretrain")
    assert code == 2
    expected = "data: the disk of this machine is gone" if what == "mistake" else "ZeroDivisionError: of nothing"
    assert err.startswith(f"ptmrun: device.processes: process 2 of 2: {expected}; go on with: ptmrun resume outputs/")


def test_more_processes_than_there_is_work_for_is_a_mistake(ptmrun, monkeypatch):
    code, _, err = ptmrun("device.processes=4", "pretrain.accumulate=2", "finetune.accumulate=8")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("ptmrun: device.processes=4: a step has pretrain.accumulate=2 micro-batches")
    assert compose(["device.processes=4", "finetune.accumulate=8"]).pretrain.accumulate == 4
    assert compose(["device.processes=4", "finetune.accumulate=8"]).finetune.accumulate == 8
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert (compose([]).device.processes, compose([]).pretrain.accumulate) == (3, 3)
    with pytest.raises(UserError, match=r"device\.processes=2: torchrun has started 3; leave it out"):
        compose(["device.processes=2"])


@pytest.mark.parametrize("task", ["mim", "clm"])
def test_what_is_computed_again_is_the_same_in_less_memory(tmp_path, task):
    """Bit for bit, with dropout and in two processes too; and the count of operations does not change."""
    (tmp_path / "corpus.txt").write_text("\n\n".join(story(24, 6)), encoding="utf-8")
    contexts = [prepared(f"task={task}", "stage=pretrain", *CASES[task], f"device.recompute={x}") for x in ("false", "true")]
    kept, again = ((x, x.objective, x.data.corpus, x.cfg.pretrain, 2) for x in contexts)
    plain, other = trained(*kept, tmp_path / "kept"), trained(*again, tmp_path / "again")
    assert tensor_files.sha256(plain[0]) == tensor_files.sha256(other[0])
    assert plain[1] == other[1]
    close(in_two(lambda p: trained(*again, tmp_path / "both", p), tmp_path), plain)
    assert len({compute.pretraining(context) for context in contexts}) == 1
    models = [context.objective() for context in contexts]
    batches = [
        next(batches_of(c, m, c.data.corpus, c.cfg.pretrain, 0, "x").iterate(0, 1))[0]
        for c, m in zip(contexts, models, strict=True)
    ]
    sizes = [estimate.activations(m, batch, contextlib.nullcontext) for m, batch in zip(models, batches, strict=True)]
    assert sizes[1] < 0.5 * sizes[0]


def test_a_network_without_such_blocks_is_named(ptmrun):
    code, _, err = ptmrun(*RUN, "device.recompute=true")
    assert code == 2
    assert "device.recompute=true: model=cnn has no blocks of transformers' that could be computed again; leave it out" in err
