"""Trackers: what arrives in each library, and that a run does not depend on them."""

import io
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY, latest
from PIL import Image
from test_cli_runs import same

from ptmrun import cli
from ptmrun.config import choices, parsing, specs
from ptmrun.loggers import tracker
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.stages import evaluate
from ptmrun.stages import run as stages

QUICK = [*TINY, "evaluate.baselines=[chance,scratch]"]
FIGURES = {"curves", "reconstructions", "augmented", "attention", "confusion", "scores", "embedding", "compute"}


def expected(run: Run, names: tuple[str, ...] = ()) -> dict[str, list[tuple[int, float]]]:
    """{"<stage>/<trial>/<name>": [(step, value)]} of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics():
        prefix = "/".join(line[k] for k in ("stage", "trial") if k in line)
        for name in line.keys() - {"stage", "trial", "step", "time"}:
            found.setdefault(f"{prefix}/{name}", []).append((line["step"], line[name]))
    assert {"pretrain/loss", "pretrain/probe_knn", "finetune/5-tuned-1/loss", "baseline/5-scratch-0/lr"} <= set(found)
    return found


def scores(run: Run) -> dict[str, float]:
    results = json.loads(run.path("results.json").read_text())
    named = {f"baselines/{k}": v for k, v in results["baselines"].items()}
    return {"score": results["score"], "score_sd": results["score_sd"], **named}


def interrupted_and_resumed(ptmrun, monkeypatch, *argv: str) -> Run:
    """A run that stops at a line whose step was not saved yet, so that the resumed run writes it again."""
    metric = Run.metric

    def killed(self, line):
        metric(self, line)
        if line["step"] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "metric", killed)
    assert ptmrun(*QUICK, *argv)[0] == 130
    monkeypatch.setattr(Run, "metric", metric)
    folder = latest()
    assert len(Run.open(folder).metrics()) == 3
    assert ptmrun("resume", folder)[0] == 0
    return Run.open(folder)


def pixels(file) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def holds_no_pickle(run: Run) -> bool:
    files = [p for p in run.folder.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".pt", ".pickle", ".npy")]
    assert not [p for p in run.folder.rglob("*") if p.is_symlink()]
    return not [p for p in files if p.read_bytes()[:1] == b"\x80" and p.read_bytes()[-1:] == b"."]


def test_tensorboard(ptmrun, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted_and_resumed(ptmrun, monkeypatch, "logger=tensorboard")
    assert "logger=tensorboard failed" not in run.path("log.txt").read_text()
    events = EventAccumulator(str(run.path("tracking")), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wanted = expected(run)
    assert set(found) == set(wanted) | set(scores(run))
    for name, points in wanted.items():
        assert [s for s, _ in found[name]] == [s for s, _ in points], name  # resumed: no point twice, none missing
        if name.split("/")[-1] not in ("samples_per_s", "data_wait"):
            assert [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=1e-6)
    assert {name: found[name][-1][1] for name in scores(run)} == pytest.approx(scores(run), rel=1e-6)
    assert {f"figures/{name}" for name in FIGURES} == set(events.Tags()["images"])
    picture = events.Images("figures/scores")[0].encoded_image_string
    assert np.array_equal(pixels(io.BytesIO(picture)), pixels(run.path("figures/scores.png")))
    text = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("config/text_summary")]
    assert text[0].split("```yaml\n")[1] == run.path("config.yaml").read_text() + "```"
    assert [t.tensor_proto.string_val[0] for t in events.Tensors("status/text_summary")] == [b"interrupted", b"done"]
    from tensorboard.plugins.hparams import plugin_data_pb2

    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    table = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info.hparams
    assert table["task.mask_ratio"].number_value == 0.65
    assert table["finetune.epochs"].string_value == "null"
    assert set(table) == set(tracker.params(config_file.load(run.path("config.yaml"))))
    assert holds_no_pickle(run)


def test_mlflow(ptmrun, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    run = interrupted_and_resumed(ptmrun, monkeypatch, "logger=mlflow", "logger.experiment=digits")
    import mlflow

    assert "logger=mlflow failed" not in run.path("log.txt").read_text()
    uri = f"sqlite:///{run.folder.resolve().parent}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    rows = mlflow.search_runs(experiment_names=["digits"])
    assert len(rows) == 1
    row = rows.iloc[0]
    assert row["status"] == "FINISHED"
    assert row["tags.mlflow.runName"] == run.folder.resolve().name
    assert row["run_id"] == run.manifest["tracking_id"]
    params = tracker.params(config_file.load(run.path("config.yaml")))
    assert {k: row[f"params.{k}"] for k in params} == {k: str(v) for k, v in params.items()}
    assert {k: row[f"metrics.{k}"] for k in scores(run)} == scores(run)
    client = mlflow.MlflowClient(uri)
    for name, points in expected(run).items():
        history = [(m.step, m.value) for m in client.get_metric_history(row["run_id"], name)]
        assert [s for s, _ in history] == [s for s, _ in points], name
        if name.split("/")[-1] not in ("samples_per_s", "data_wait"):
            assert history == points
    files = client.list_artifacts(row["run_id"], "figures")
    assert {f.path for f in files} == {f"figures/{name}.png" for name in FIGURES}
    stored = Path(row["artifact_uri"].removeprefix("file://"), "figures/scores.png")
    assert stored.read_bytes() == run.path("figures/scores.png").read_bytes()
    assert stored.is_relative_to(run.folder.resolve().parent / "mlruns")
    assert not Path("mlruns").exists()
    assert holds_no_pickle(run)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; crc, length, type), each a protobuf message."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def test_wandb(ptmrun, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)  # is not stored
    run = interrupted_and_resumed(ptmrun, monkeypatch, "logger=wandb", "logger.project=digits")
    import wandb

    wandb.teardown()  # as at the end of a process: its service writes what is left
    assert "logger=wandb failed" not in run.path("log.txt").read_text()
    files = sorted(run.path("tracking", "wandb").glob("offline-run-*/*.wandb"))
    assert [f.name for f in files] == [f"run-{run.manifest['tracking_id']}.wandb"] * 2
    found: dict[str, list[tuple[int, float]]] = {}
    summary, figures, configs = {}, {}, []
    for record in (r for f in files for r in wandb_records(f)):
        kind = record.WhichOneof("record_type")
        assert kind not in ("output", "output_raw", "stats", "artifact", "environment"), kind
        if kind == "run":
            assert (record.run.project, record.run.display_name) == ("digits", run.folder.resolve().name)
            assert not record.run.git.commit
            assert not record.run.host
            configs.append({x.key: json.loads(x.value_json) for x in record.run.config.update})
        elif kind == "history":
            row = {(x.key, *x.nested_key): json.loads(x.value_json) for x in record.history.item}
            row = {tuple(filter(None, names)): value for names, value in row.items()}
            step = next((v for (name, *_), v in row.items() if name.endswith("/step")), None)
            for (name, *part), value in row.items():
                if part == ["path"]:
                    figures[name] = value
                elif not part and not name.startswith("_") and not name.endswith("/step"):
                    found.setdefault(name, []).append((step, value))
        elif kind == "summary":
            summary |= {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in record.summary.update}
    saved = parsing.plain(config_file.load(run.path("config.yaml")))
    assert all({k: v for k, v in c.items() if k != "_wandb"} == saved for c in configs)
    assert len(configs) >= 2
    assert set(found) == set(expected(run))
    for name, points in expected(run).items():
        assert [s for s, _ in found[name]] == [s for s, _ in points], name
        if name.split("/")[-1] not in ("samples_per_s", "data_wait"):
            assert found[name] == points
    assert {k: summary[k] for k in scores(run)} == scores(run)
    assert summary["status"] == "done"
    assert set(figures) == {f"figures/{name}" for name in FIGURES}
    picture = files[-1].parent / "files" / figures["figures/scores"]
    assert picture.read_bytes() == run.path("figures/scores.png").read_bytes()
    assert holds_no_pickle(run)
    texts = [p.read_bytes() for p in run.path("tracking").rglob("*") if p.is_file()]
    assert not [t for t in texts if b"k" * 40 in t]
    assert not [p for p in run.path("tracking").rglob("*") if p.name in ("requirements.txt", "wandb-metadata.json", "output.log")]


class Fake:
    """A logger that keeps what it gets and fails where it is told to."""

    at = ""
    got: list = []  # noqa: RUF012
    look = "nothing"

    def __init__(self, run, cfg):
        self.do("open")

    def do(self, name, *values):
        Fake.got.append((name, *values))
        if name == Fake.at:
            raise RuntimeError(f"no {name}\nsecond line")

    def metrics(self, prefix, values, step, time):
        self.do("metrics", prefix, values, step)

    def figure(self, name, path):
        self.do("figure", name)

    def close(self, status, scores):
        self.do("close", status, scores)


@pytest.fixture
def fake(monkeypatch):
    """`logger=tensorboard` becomes Fake."""
    monkeypatch.setitem(sys.modules, "ptmrun.loggers.tensorboard", SimpleNamespace(Logger=Fake))
    monkeypatch.setattr(Fake, "got", [])
    monkeypatch.setattr(Fake, "at", "")
    return Fake


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untracked")
    assert cli.run([*QUICK, f"outputs={folder}"]) == 0
    return (folder / "latest").resolve()


@pytest.mark.parametrize("at", ["open", "metrics", "close"])
def test_a_tracker_that_fails_changes_nothing(at, fake, untracked, ptmrun, monkeypatch):
    monkeypatch.setattr(fake, "at", at)
    code, out, err = ptmrun(*QUICK, "logger=tensorboard")
    assert (code, err) == (0, "")
    same(untracked, latest())
    line = f"logger=tensorboard failed and is dropped, the run goes on without it: RuntimeError: no {at} second line"
    assert out.count(line) == 1
    assert (latest() / "log.txt").read_text().count(line) == 1
    assert [name for name, *_ in fake.got].count(at) == 1
    assert fake.got[-1][0] == at  # dropped: asked nothing more


def test_what_a_tracker_gets(fake, ptmrun, monkeypatch):
    """Of a run that fails before its last stage and is resumed."""

    def broken(context):
        raise KeyError("bug")

    monkeypatch.setattr(stages, "evaluate", broken)
    with pytest.raises(KeyError):
        ptmrun(*QUICK, "logger=tensorboard")
    assert fake.got[-1] == ("close", "failed", {})
    monkeypatch.setattr(stages, "evaluate", evaluate.evaluate)
    assert ptmrun("resume", latest())[0] == 0
    run = Run.open(latest())
    assert fake.got[-1] == ("close", "done", scores(run))
    assert {x[1] for x in fake.got if x[0] == "figure"} == FIGURES
    sent: dict[str, list[tuple[int, float]]] = {}
    for _, prefix, values, step in (x for x in fake.got if x[0] == "metrics"):
        for name, value in values.items():
            sent.setdefault(f"{prefix}/{name}", []).append((step, value))
    assert sent == expected(run)


def test_a_reproduction_tracks_nothing(fake, ptmrun):
    assert ptmrun(*QUICK, "stage=pretrain", "logger=tensorboard")[0] == 0
    fake.got.clear()
    code, out, _ = ptmrun("reproduce", latest())
    assert code == 0
    assert "bit-exact" in out
    assert "logger" not in out
    assert fake.got == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_library_is_one_line_before_anything_runs(name, ptmrun, monkeypatch):
    for module in [m for m in sys.modules if m.split(".")[0] == name or m == f"ptmrun.loggers.{name}"]:
        monkeypatch.delitem(sys.modules, module)
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    monkeypatch.setitem(sys.modules, "alembic", None)
    code, _, err = ptmrun(*QUICK, f"logger={name}")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"ptmrun: logger={name}: ")
    assert err.endswith(f"install it with: pip install 'ptmrun[{name}]'\n")
    assert not Path("outputs").exists()


def test_keys_are_typed(ptmrun):
    assert "logger.mode=nowhere: expected 'offline' or 'online'" in ptmrun("logger=wandb", "logger.mode=nowhere")[2]
    assert "logger.uri: no such key" in ptmrun("logger=wandb", "logger.uri=x")[2]


@pytest.mark.parametrize("name", [n for n in choices.names("logger") if n != "none"])
def test_every_choice_has_its_module_and_extra(name):
    import tomllib

    assert (choices.PACKAGE.parent / f"{specs.spec('logger', name).module.replace('.', '/')}.py").exists()
    project = tomllib.loads((choices.PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"][name]
