"""The run folder: exclusive, atomic, and read as data only."""

import errno
import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import TINY, latest

import ptmrun as package
from ptmrun.commands import table
from ptmrun.compose import compose
from ptmrun.errors import UserError
from ptmrun.objectives import simclr
from ptmrun.runs.folder import Run
from ptmrun.stages import pretrain
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic

PACKAGE = Path(package.__file__).parent
CONFIG = compose(["name=x"])


def make() -> Run:
    return Run.create(CONFIG, ["name=x"], {"command": "ptmrun"})


def test_no_two_runs_share_a_folder():
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: make(), range(24)))
    assert len({r.folder for r in runs}) == 24
    assert Path("outputs/latest").resolve() in {r.folder.resolve() for r in runs}


def test_a_taken_lock_is_refused():
    run = make()
    with run.lock(), pytest.raises(UserError, match="another process is working on this run"), Run.open(run.folder).lock():
        pass
    with run.lock():
        pass


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    with pytest.raises(UserError, match=r"a.json: cannot be written: No space left on device; what was there before is intact"):
        tensor_files.save(path, {"x": torch.ones(1)})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p: (p / "manifest.json").unlink(), "not a run folder, or not a whole one: manifest.json is missing"),
        (lambda p: (p / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda p: (p / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda p: (p / "manifest.json").write_text('{"status": NaN}'), "NaN is not JSON"),
        (lambda p: (p / "manifest.json").write_text('{"status": "fine"}'), "expected a status"),
        (lambda p: (p / "manifest.json").write_text("[]"), "expected a status"),
        (lambda p: (p / "manifest.json").write_text('{"status": "done", "packages": 3}'), "packages is not what ptmrun writes"),
        (
            lambda p: (p / "manifest.json").write_text('{"status": "done", "parents": ["x"]}'),
            "parents.0 is not what ptmrun",
        ),
        (lambda p: (p / "manifest.json").write_text("[" * 100_000), "not valid JSON"),
        (
            lambda p: ((p / "manifest.json").unlink(), (p / "manifest.json").symlink_to("/etc/hostname")),
            "leads outside of the run folder",
        ),
    ],
)
def test_a_spoilt_folder_is_refused(spoil, expected):
    run = make()
    spoil(run.folder)
    with pytest.raises(UserError) as caught:
        Run.open(run.folder)
    assert expected in str(caught.value)


def test_paths_stay_inside(tmp_path):
    run = make()
    (run.folder / "checkpoints").symlink_to(tmp_path)
    for name in ("../x", "/etc/passwd", "checkpoints/encoder"):
        with pytest.raises(UserError, match="leads outside of the run folder; refused"):
            run.path(name)


def test_nothing_is_written_through_a_link(tmp_path):
    """Files that a hostile folder left where the parts of atomic writes go."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("a.json", "b.safetensors"):
        (tmp_path / f".{name}.part").symlink_to(outside)
    write_atomic(tmp_path / "a.json", "new")
    tensor_files.save(tmp_path / "b.safetensors", {"x": torch.ones(1)})
    assert outside.read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "new"


def test_metrics_survive_a_cut_line():
    run = make()
    run.metric({"stage": "finetune", "trial": "a", "step": 1, "loss": 1.0, "samples_per_s": 9.0})
    run.metric({"stage": "finetune", "trial": "a", "step": 2, "loss": 0.5, "samples_per_s": 9.0})
    run.metric({"stage": "finetune", "trial": "b", "step": 9, "loss": 0.1, "samples_per_s": 9.0})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": "pre')
    assert [x["step"] for x in run.metrics()] == [1, 2, 9]
    run.cut_metrics({"stage": "finetune", "trial": "a"}, 1)
    assert [x["step"] for x in run.metrics()] == [1, 9]
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == 2


def test_checkpoints_are_not_unpickled(tmp_path):
    path = tmp_path / "state.safetensors"
    torch.save({"x": torch.ones(2)}, path)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        tensor_files.load(path)
    tensor_files.save(path, {"x": torch.ones(2)}, {"step": 3})
    tensors, state = tensor_files.load(path)
    assert (tensors["x"].tolist(), state) == ([1.0, 1.0], {"step": 3})
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            tensor_files.load(path)


def test_hash_depends_on_names_types_shapes_and_values():
    x = torch.arange(6.0)
    hashes = [{"a": x}, {"b": x}, {"a": x.double()}, {"a": x.view(2, 3)}, {"a": x + 1}]
    assert len({tensor_files.sha256(h) for h in hashes}) == 5
    assert tensor_files.sha256({"a": x, "b": x}) == tensor_files.sha256({"b": x, "a": x.clone()})


def test_manifest_has_no_nan():
    run = make()
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.update(score=float("nan"))
    assert json.loads((run.folder / "manifest.json").read_text())["status"] == "running"


def test_a_step_is_four_hops_from_the_command_line(ptmrun, monkeypatch):
    """A stack trace inside an objective shows the way."""
    seen = []
    forward = simclr.Objective.forward

    def traced(self, batch):
        if not seen and not any("flops" in frame.filename for frame in traceback.extract_stack()):
            names = [Path(frame.filename) for frame in traceback.extract_stack()]
            inside = [str(p.relative_to(PACKAGE)) for p in names if p.is_relative_to(PACKAGE)]
            seen.extend(dict.fromkeys(inside))
        return forward(self, batch)

    monkeypatch.setattr(simclr.Objective, "forward", traced)
    code, _, err = ptmrun(*TINY, "model=cnn", "task=simclr", "stage=pretrain", "pretrain.steps=1")
    assert code == 0, err
    assert seen == ["cli.py", "stages/run.py", "stages/pretrain.py", "training/loop.py"]


def test_a_mistake_in_drawing_costs_no_pretraining(ptmrun, monkeypatch):
    small = [*TINY, "model=cnn", "stage=pretrain", "pretrain.steps=2"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "draw_pretraining", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ptmrun(*small)
    folder = latest()
    weights = tensor_files.sha256(tensor_files.load(folder / "checkpoints/encoder/model.safetensors")[0])
    code, _, err = ptmrun("resume", folder)
    assert code == 0, err
    assert tensor_files.sha256(tensor_files.load(folder / "checkpoints/encoder/model.safetensors")[0]) == weights
    assert (folder / "figures/curves.png").exists()


@pytest.mark.parametrize("verb", table.VERBS)
def test_every_verb_explains_itself(ptmrun, verb):
    code, out, err = ptmrun(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"ptmrun {verb} {table.VERBS[verb].usage}")
    assert f"As in: ptmrun {table.VERBS[verb].example}" in out
    assert len(out.splitlines()) < 25


def test_export_help_lists_its_settings(ptmrun):
    assert "  merge=false" in ptmrun("export", "--help")[1]
