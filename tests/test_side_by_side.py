"""Trainings side by side: the same as one after the other, through interruption, failure and kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CNN, TINY
from threadpoolctl import threadpool_limits

from ptmrun import cli
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages import finetune, side_by_side
from ptmrun.storage import tensor_files

SMALL = [*TINY, *CNN, "task=simclr", "downstream.labels_per_class=[2,5]", "finetune.log_every=1", "evaluate.scratch_repeats=1"]
SMALL = [a for a in SMALL if a != "device.threads=1"] + [
    "pretrain.steps=4",
    "finetune.checkpoint_every=30",
    "evaluate.baselines=[scratch]",
]


@pytest.fixture(autouse=True)
def _one_thread_again():
    yield
    torch.set_num_threads(1)
    threadpool_limits(1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parent")
    assert cli.run([*SMALL, "stage=pretrain", "device.threads=1", f"outputs={folder}"]) == 0
    return (folder / "latest").resolve()


def command(parent: Path, outputs: Path, *more: str) -> list[str]:
    keep = [a for a in SMALL if not a.startswith("pretrain.")]
    return [*keep, "stage=finetune+evaluate", f"init={parent}", f"outputs={outputs}", *more]


@pytest.fixture(scope="module")
def together(parent, tmp_path_factory):
    """The run that was not disturbed."""
    folder = tmp_path_factory.mktemp("together")
    assert cli.run(command(parent, folder, "device.threads=2")) == 0
    return (folder / "latest").resolve()


def trained(folder: Path, kind: str) -> dict[str, dict[str, torch.Tensor]]:
    return {file.name: tensor_files.load(file)[0] for file in sorted(folder.glob(f"checkpoints/{kind}.safetensors"))}


def lines(folder: Path) -> list[str]:
    """The metrics without times, in an order of their own."""
    times = ("time", "samples_per_s", "data_wait")
    each = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return sorted(json.dumps({k: v for k, v in x.items() if k not in times}) for x in each)


def same(folder: Path, other: Path, kinds: tuple[str, ...] = ("finetuned/*", "logits/*")) -> None:
    for kind in kinds:
        mine, theirs = trained(folder, kind), trained(other, kind)
        assert mine.keys() == theirs.keys()
        assert mine
        for name, tensors in theirs.items():
            assert all(torch.equal(mine[name][key], value) for key, value in tensors.items()), name
    assert lines(folder) == lines(other)
    manifests = [json.loads((x / "manifest.json").read_text()) for x in (folder, other)]
    assert manifests[0]["finetuned_sha256"] == manifests[1]["finetuned_sha256"]
    assert manifests[0]["cpu_s"].keys() == manifests[1]["cpu_s"].keys()


def test_the_same_as_one_after_the_other(parent, together, tmp_path, monkeypatch, ptmrun):
    def none(*_):
        raise AssertionError("no process is to be forked")

    monkeypatch.setattr(os, "fork", none)
    assert ptmrun(*command(parent, tmp_path / "alone", "device.threads=1"))[0] == 0
    same((tmp_path / "alone" / "latest").resolve(), together, ("finetuned/*", "logits/*scratch*"))
    serial = ("device.threads=2", "device.side_by_side=false", "evaluate.baselines=[chance]")
    assert ptmrun(*command(parent, tmp_path / "asked", *serial))[0] == 0
    with pytest.raises(AssertionError, match="forked"):
        cli.run(command(parent, tmp_path / "forks", "device.threads=2"))


def test_a_signal_saves_all_of_them(parent, together, tmp_path, monkeypatch, ptmrun):
    metric, seen = Run.metric, []

    def signalled(self, line):
        metric(self, line)
        seen.append(line)
        if len(seen) in (3, 16):  # while fine-tuning, and in what was resumed while training from scratch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Run, "metric", signalled)
    code, _, err = ptmrun(*command(parent, tmp_path, "device.threads=2"))
    assert (code, json.loads((tmp_path / "latest" / "manifest.json").read_text())["status"]) == (143, "interrupted"), err
    while code == 143:
        code, _, err = ptmrun("resume", tmp_path / "latest")
    assert code == 0, err
    assert len(seen) > 16
    same((tmp_path / "latest").resolve(), together)


def test_no_state_is_saved_before_the_lines_that_belong_to_it(parent, tmp_path, monkeypatch, ptmrun):
    metric, early = Run.metric, []

    def slow(self, line):
        time.sleep(0.1)
        early.extend(self.folder.glob(f"checkpoints/{line['stage']}*/{line['trial']}*"))
        early.extend(self.folder.glob(f"checkpoints/logits/{line['trial']}*"))
        metric(self, line)

    monkeypatch.setattr(Run, "metric", slow)
    few = ("device.threads=2", "finetune.log_every=100", "downstream.labels_per_class=[2]")
    assert ptmrun(*command(parent, tmp_path, *few))[0] == 0
    assert len((tmp_path / "latest" / "metrics.jsonl").read_text().splitlines()) > 3
    assert not [file for file in early if "-tuned-" in file.name]


@pytest.mark.parametrize("how", ["mistake", "bug", "killed"])
def test_one_that_fails_ends_the_run_after_the_others_have_saved(parent, together, tmp_path, monkeypatch, ptmrun, how):
    tune = finetune.tune

    def failing(context, trial):
        if trial.name != "2-tuned-0":
            return tune(context, trial)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("the disk is on fire") if how == "mistake" else ZeroDivisionError("of nothing")

    monkeypatch.setattr(finetune, "tune", failing)
    argv = command(parent, tmp_path, "device.threads=2")
    if how == "bug":
        with pytest.raises(ZeroDivisionError, match="of nothing"):
            cli.run(argv)
    else:
        code, _, err = ptmrun(*argv)
        assert code == 2
        assert ("the disk is on fire" if how == "mistake" else "device.side_by_side: a training was ended by SIGKILL") in err
    assert json.loads((tmp_path / "latest" / "manifest.json").read_text())["status"] == "failed"
    if how != "killed":
        return
    monkeypatch.setattr(finetune, "tune", tune)
    assert ptmrun("resume", tmp_path / "latest")[0] == 0
    same((tmp_path / "latest").resolve(), together)


def test_kill_9_takes_all_of_them_and_resuming_ends_the_same(parent, together, tmp_path, ptmrun):
    argv = [sys.executable, "-m", "ptmrun", *command(parent, tmp_path, "device.threads=2")]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("latest/checkpoints/logits/*-scratch-*.safetensors")):  # before the last of them
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    while "another process" in (answer := ptmrun("resume", tmp_path / "latest"))[2]:  # until the children are gone too
        assert time.monotonic() < deadline
    assert answer[0] == 0, answer[2]
    same((tmp_path / "latest").resolve(), together)


def test_how_many_at_once(monkeypatch):
    def context(threads, wanted="auto", device="cpu"):
        options = SimpleNamespace(side_by_side=wanted, threads=threads, compile=False, processes=1)
        return SimpleNamespace(cfg=SimpleNamespace(device=options), device=torch.device(device))

    small, large = side_by_side.SMALL, side_by_side.SMALL + 1
    assert [side_by_side.at_once(context(2), small, n) for n in (1, 2, 3, 4)] == [1, 2, 1.5, 2]
    assert side_by_side.at_once(context(1), small, 4) == 1
    assert side_by_side.at_once(context(4), large, 4) == 1
    assert side_by_side.at_once(context(4, True), large, 4) == 4
    assert side_by_side.at_once(context(4, False), small, 4) == 1
    assert side_by_side.at_once(context(4, device="meta"), small, 4) == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    assert side_by_side.at_once(context(4), small, 4) == 1
