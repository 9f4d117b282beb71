"""Run folders that a stranger made: each verb answers with one line and exit code 2, or does what is right."""

import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import TINY, drop_digests, latest
from safetensors.torch import load_file, save_file

from ptmrun import cli
from ptmrun.errors import UserError
from ptmrun.storage import safe_read

SMALL = [*TINY, "finetune.seeds=1", "evaluate.baselines=[chance]", "pretrain.probes=0"]
CPU = ["device=cpu", "device.precision=fp32", "device.threads=1", "device.workers=0"]
SECONDS = 60  # for a verb; a FIFO that is opened would wait for ever
VERBS = {
    "resume": lambda run: ["resume", run],
    "reproduce": lambda run: ["reproduce", run],
    "report": lambda run: ["report", run],
    "generate": lambda run: ["generate", run],
    "finetune": lambda run: ["stage=finetune", f"init={run}", "finetune.steps=1", *CPU],
    "evaluate": lambda run: ["stage=evaluate", f"init={run}", *CPU],
}
EVERY = tuple(VERBS)
STARTS = ("finetune", "evaluate")
CONFIG = ("resume", "report", "finetune")  # the three ways in which a saved config is read
READERS = ("resume", *STARTS)  # of weights; reproduce makes its own


class Case(NamedTuple):
    """A name, what to spoil, what the one line says ("" where the verb may also succeed), by which verbs, in which status."""

    name: str
    spoil: Callable[[Path], object]
    expected: str
    verbs: tuple[str, ...] = CONFIG
    status: str = "interrupted"


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text, f"{old!r} is not in {name}"
        (run / name).write_text(text.replace(old, new, 1))

    return spoil


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        clear(run / name)
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(name: str, target: str = "../outside/precious") -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        clear(run / name)
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).symlink_to(os.path.relpath(run.parent / "outside" / Path(target).name, (run / name).parent))

    return spoil


def fifo(name: str) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        clear(run / name)
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(run / name)

    return spoil


def folder(name: str) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        clear(run / name)
        (run / name / "x").mkdir(parents=True)

    return spoil


def change(name: str, **entries: object) -> Callable[[Path], object]:
    """Entries of a JSON file; `a__b` for b in a."""

    def spoil(run: Path) -> None:
        content = json.loads((run / name).read_text())
        for key, value in entries.items():
            *parents, last = key.split("__")
            where = content
            for part in parents:
                where = where[int(part) if isinstance(where, list) else part]
            where[last] = value
        (run / name).write_text(json.dumps(content))

    return spoil


def weights(name: str, alter: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        tensors = load_file(run / name)
        alter(tensors)
        save_file(tensors, run / name)

    return spoil


def safetensors_header(header: object, data: bytes = b"\0" * 64) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def sparse(name: str, size: int) -> Callable[[Path], object]:
    def spoil(run: Path) -> None:
        clear(run / name)
        with open(run / name, "wb") as file:
            file.truncate(size)

    return spoil


class Canary:
    """A pickle that leaves a file when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch canary",)


PICKLE = pickle.dumps(Canary())
CALL = "!!python/object/apply:os.system ['touch canary']"
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 40))
BESIDE = {  # of the encoder's files only the weights are looked at
    "config.json": json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}, "hidden_size": 1e12}),
    "evil.py": "import os; os.system('touch canary')",
    "adapter_config.json": json.dumps({"base_model_name_or_path": "evil/x"}),
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "../../x"}}),
    "preprocessor_config.json": json.dumps({"image_processor_type": "os.system", "auto_map": {"AutoImageProcessor": "evil.X"}}),
}
PICKLES = ("checkpoints/encoder/pytorch_model.bin", "checkpoints/heads.safetensors", "checkpoints/encoder/training_args.bin")
WEIGHTS = "checkpoints/encoder/model.safetensors"
STATE = "checkpoints/state/pretrain.safetensors"
TUNED = "checkpoints/finetuned/5-tuned-0.safetensors"
LOGITS = "checkpoints/logits/5-tuned-0.safetensors"
PLAIN = "not a plain YAML file"
REFUSED = "; refused"
LINE = '{"stage": "pretrain", "step": 1, %s}\n'
INSIDE = "<script>alert(1)</script>"
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
NOTHING = ""


def without(name: str) -> Callable[[Path], object]:
    return lambda run: clear(run / name)


def both(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda run: [spoil(run) for spoil in spoils]


def unfinished(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    """A run that was killed while it pretrained."""
    names = ("checkpoints/encoder", "checkpoints/finetuned", "checkpoints/logits", "results.json")
    return both(*map(without, names), lambda run: (run / STATE).parent.mkdir(exist_ok=True), *spoils)


def parent_loop(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    edit("config.yaml", "init: random", f"init: {run}")(run)


def drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(iter(tensors)))


def spoil_first(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def alter(tensors: dict[str, torch.Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name] = value(tensors[name])

    return alter


def state(**changes: object) -> Callable[[Path], object]:
    """A checkpoint of pretraining whose JSON state is not what it should be."""
    good = {"precision": "fp32", "step": 3, "steps": 12, "skipped": 0, "in_a_row": 0, "first": [], "window": {}, "last": {}}
    good |= {"lr_scale": 1.0, "recoveries": [], "good_step": 0}

    def spoil(run: Path) -> None:
        tensors = {"model.x": torch.zeros(1)}
        save_file(tensors, run / STATE, metadata={"state": json.dumps({**good, **changes})})

    return unfinished(spoil)


CASES = [
    # config.yaml
    Case("target at the top", edit("config.yaml", "stage:", "_target_: os.system\nstage:"), "_target_: no such key", EVERY),
    Case("target in a section", edit("config.yaml", "  pool:", "  _target_: os.system\n  pool:"), "model._target_: no such key"),
    Case("target below a section", edit("config.yaml", "    flip:", "    _target_: a.b\n    flip:"), "_target_: no such key"),
    Case("interpolation", edit("config.yaml", "init: random", "init: ${oc.env:HOME}"), "interpolation ${oc.env:HOME}"),
    Case("resolver", edit("config.yaml", "name: null", "name: ${eval:1}"), "interpolation ${eval:1}"),
    Case("python tag", edit("config.yaml", "seed: 0", f"seed: {CALL}"), PLAIN, EVERY),
    Case("python name tag", edit("config.yaml", "seed: 0", "seed: !!python/name:os.system"), PLAIN),
    Case("binary tag", edit("config.yaml", "init: random", "init: !!binary cmFuZG9t"), "a tag in line"),
    Case("set tag", edit("config.yaml", "seed: 0", "seed: !!set {0}"), "a tag in line"),
    Case("bad bool tag", edit("config.yaml", "seed: 0", "seed: !!bool x"), "a tag in line"),
    Case("billion laughs", lambda run: put("config.yaml", LAUGHS)(run), "an anchor or alias in line 1", EVERY),
    Case("merge key", edit("config.yaml", "stage:", "<<: {seed: 1}\nstage:"), "a key that is no text"),
    Case("deep nesting", put("config.yaml", "a: " + "[" * 50_000), PLAIN),
    Case("deep enough", put("config.yaml", "a: " + "[" * 60 + "]" * 60), "nested deeper than 20 levels"),
    Case("huge integer", edit("config.yaml", "seed: 0", "seed: " + "9" * 9000), PLAIN),
    Case("large integer", edit("config.yaml", "seed: 0", "seed: " + "9" * 40), "seed=9999"),
    Case("bad date", edit("config.yaml", "seed: 0", "seed: 2001-99-99"), PLAIN),
    Case("key twice", edit("config.yaml", "seed: 0", "seed: 0\nseed: 1"), "the key seed twice"),
    Case("number as key", edit("config.yaml", "seed: 0", "1: 0"), "a key that is no text"),
    Case("UTF-16", lambda run: (run / "config.yaml").write_bytes("seed: 0".encode("utf-16")), "not UTF-8 text"),
    Case("NUL bytes", edit("config.yaml", "seed: 0", "seed: \0"), PLAIN),
    Case("NUL in a path", edit("config.yaml", "init: random", 'init: "a\\0b"'), "init=a\\x00b: expected"),
    Case("large config", edit("config.yaml", "stage:", "# " + "x" * 300_000 + "\nstage:"), "more than the 131,072"),
    Case("task elsewhere", edit("config.yaml", "name: mim", "name: ../../x"), "task=../../x: no such task"),
    Case("name elsewhere", edit("config.yaml", "name: null", "name: ../../x"), "name=../../x: expected letters"),
    Case(
        "init elsewhere",
        edit("config.yaml", "init: random", "init: ../../nowhere"),
        "no such run folder",
        ("resume", "reproduce"),
    ),
    Case("lines in a name", edit("config.yaml", "name: null", 'name: "a\\nb"'), "name=a\\nb: expected"),
    Case("config is pickled", put("config.yaml", PICKLE), "config.yaml"),
    Case("many threads", edit("config.yaml", "threads: 1", "threads: 1000000000"), "threads=1000000000: expected", EVERY),
    # manifest.json
    Case("manifest is no JSON", put("manifest.json", "{"), "not valid JSON", EVERY),
    Case("manifest is a list", put("manifest.json", "[]"), "expected a status"),
    Case("NaN in the manifest", put("manifest.json", '{"status": NaN}'), "NaN is not JSON"),
    Case("Infinity by exponent", edit("manifest.json", '"status":', '"x": 1e999, "status":'), "1e999 is not JSON"),
    Case("huge number", edit("manifest.json", '"status":', f'"x": {"9" * 9000}, "status":'), "not valid JSON"),
    Case("deep manifest", edit("manifest.json", '"status":', f'"x": {"[" * 500 + "]" * 500}, "status":'), "nested deeper"),
    Case("deeper manifest", put("manifest.json", "[" * 200_000), "not valid JSON"),
    Case("parents of text", change("manifest.json", parents=["../../x"]), "parents.0 is not what"),
    Case("data of text", change("manifest.json", data="x"), "data is not what"),
    Case("fingerprint of a number", change("manifest.json", data__fingerprint=3), "data.fingerprint is not what"),
    Case("hash that is none", change("manifest.json", weights_sha256="x"), "weights_sha256 is not what"),
    Case("error of a list", change("manifest.json", error=[1]), "error is not what"),
    Case("times of text", change("manifest.json", wall_s={"pretrain": "x"}), "wall_s.pretrain is not what"),
    Case("alarms of numbers", change("manifest.json", alarms=[1]), "alarms.0 is not what", ("report",)),
    Case("alarm with an escape", change("manifest.json", alarms=[{"step": 1, "what": ESCAPE}]), "alarms.0.what", ("report",)),
    Case("counts of text", change("manifest.json", data__counts={"train": ["x"]}), "data.counts.train.0", ("report",)),
    Case("notes with an escape", change("manifest.json", data__notes=[ESCAPE]), "data.notes.0 is not what", ("report",)),
    Case("fewer counts than classes", change("manifest.json", data__counts={"train": [1]}), NOTHING, ("report",)),
    Case("script as a class", change("manifest.json", data__classes=[INSIDE] * 10), NOTHING, ("report",)),
    Case("status with an escape", change("manifest.json", status="\x1b[2Jdone"), "expected a status"),
    # results.json and metrics.jsonl
    Case("results are a list", put("results.json", "[]"), "the content is not what", ("report",)),
    Case("results of a number", change("results.json", by_labels=3), "by_labels is not what", ("report",)),
    Case("no results", change("results.json", by_labels=[]), "by_labels is not what", ("report",)),
    Case("text as score", change("results.json", by_labels__0__scores__tuned__mean="x"), "tuned.mean is not", ("report",)),
    Case("methods missing", change("results.json", by_labels__0__scores={}), "is not what", ("report",)),
    Case("verdict is null", change("results.json", by_labels__0__verdict=None), "verdict is not what", ("report",)),
    Case(
        "NaN as score", edit("results.json", '"score":', '"x": NaN, "score":'), "NaN is not JSON", ("report", "reproduce"), "done"
    ),
    Case("text in pretrain", change("results.json", pretrain={"loss": "x"}), "pretrain.loss is not what", ("report",)),
    Case("metric with an escape", change("results.json", metric=ESCAPE), "metric is not what", ("report",)),
    Case("words with an escape", change("results.json", words={"tuned": ESCAPE}), "words.tuned is not what", ("report",)),
    Case("text in groups", change("results.json", metrics__groups={"a": {"n": "x"}}), "groups.a.n is not what", ("report",)),
    Case("confusion of text", change("results.json", metrics__confusion=[["x"]]), "confusion.0.0 is not what", ("report",)),
    Case("half a confusion", change("results.json", metrics__confusion=[[1], [2]]), "metrics is not what", ("report",)),
    Case("huge score", change("results.json", by_labels__0__scores__tuned__mean=1e308), NOTHING, ("report",)),
    Case("text in a class", change("results.json", metrics__per_class={INSIDE: {INSIDE: INSIDE}}), NOTHING, ("report",)),
    Case("large n_test", change("results.json", n_test=10**400), "n_test is not what", ("report",)),
    Case("results of another kind", change("results.json", by_labels__0__labels_per_class="x"), "is not", ("reproduce",), "done"),
    Case("huge loss", put("metrics.jsonl", LINE % '"held_loss": 1e308, "probe_linear": -1e308'), NOTHING, ("report",)),
    Case("text as held-out loss", put("metrics.jsonl", LINE % '"held_loss": "x", "time": "y"'), NOTHING, ("report",)),
    Case("a line of a number", put("metrics.jsonl", "3\n"), "metrics.jsonl line 1", ("resume",)),
    Case("a line without step", put("metrics.jsonl", '{"stage": "pretrain"}\n'), "step is not what", ("resume",)),
    Case("loss of text", put("metrics.jsonl", '{"stage": "a", "step": 1, "loss": "x"}\n'), "loss is not what", ("resume",)),
    Case("loss of NaN", put("metrics.jsonl", '{"stage": "a", "step": 1, "loss": NaN}\n'), "line 1: NaN is not", ("resume",)),
    Case("large metrics", sparse("metrics.jsonl", 200 * 2**20), "more than the 1,048,576 bytes", ("resume",)),
    Case("metrics are pickled", put("metrics.jsonl", PICKLE + b"\n"), "expected JSON lines", ("resume",)),
    # weights and checkpoints
    Case("pickle as encoder", put(WEIGHTS, PICKLE), "not a whole safetensors file", READERS),
    Case(
        "pickle as tuned weights",
        both(without("checkpoints/logits"), put(TUNED, PICKLE)),
        "not a whole safe",
        ("evaluate", "resume"),
    ),
    Case("pickle as logits", put(LOGITS, PICKLE), "not a whole safetensors file", ("resume",)),
    Case("pickle as state", unfinished(put(STATE, PICKLE)), "not a whole safetensors file", ("resume",)),
    Case("pickle instead", both(without(WEIGHTS), put("checkpoints/encoder/pytorch_model.bin", PICKLE)), "missing", STARTS),
    Case("pickles beside the weights", both(*map(put, PICKLES, [PICKLE] * 3)), NOTHING, ("finetune",)),
    Case("pickle as encoder config", put("checkpoints/encoder/config.json", PICKLE), NOTHING, ("resume",)),
    Case("another architecture", both(*(put(f"checkpoints/encoder/{k}", v) for k, v in BESIDE.items())), NOTHING, ("finetune",)),
    Case("giant header", put(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "not a whole safetensors file", READERS),
    Case("header is a list", put(WEIGHTS, safetensors_header([])), "not a whole safetensors file", READERS),
    Case(
        "overlapping tensors",
        put(WEIGHTS, safetensors_header({k: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for k in "ab"})),
        "not a whole safetensors file",
        READERS,
    ),
    Case(
        "huge offsets",
        put(WEIGHTS, safetensors_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
        "not a whole safetensors file",
        READERS,
    ),
    Case("larger than memory", sparse(WEIGHTS, 2**43), "larger than this machine's memory", READERS),
    Case("NaN weights", weights(WEIGHTS, spoil_first(lambda x: x * torch.nan)), "holds NaN or Infinity", ("finetune",)),
    Case("wrong shape", weights(WEIGHTS, spoil_first(lambda x: torch.zeros(3))), "mismatched keys", ("finetune",)),
    Case("wrong type", weights(WEIGHTS, spoil_first(lambda x: x.to(torch.int8))), "does not fit the model", ("finetune",)),
    Case("tensor missing", weights(WEIGHTS, drop), "missing keys", ("finetune",)),
    Case("tensor too many", weights(WEIGHTS, lambda t: t.update(evil=torch.zeros(2))), "unexpected keys evil", ("finetune",)),
    Case("NaN logits", weights(LOGITS, lambda t: t["logits"].fill_(torch.nan)), "not finite predictions", ("resume",)),
    Case("few logits", weights(LOGITS, lambda t: t.update(logits=torch.zeros(2, 3))), "not finite predictions", ("resume",)),
    Case("state of text", state(step="3"), "step is not what", ("resume",)),
    Case("state of the future", state(step=13), "not a checkpoint of this run's 12 steps", ("resume",)),
    Case("state without numbers", state(window={"loss": [1]}), "window.loss is not what", ("resume",)),
    Case(
        "state is a list",
        unfinished(put(STATE, safetensors_header({"__metadata__": {"state": "[]"}}, b""))),
        "no state",
        ("resume",),
    ),
    Case("another model's state", state(), "does not fit the model", ("resume",)),
    # links, FIFOs, devices, folders
    *(Case(f"link as {n}", link(n), "leads outside of the run folder", EVERY) for n in ("config.yaml", "manifest.json")),
    *(Case(f"link as {n}", link(n), "leads outside", ("resume",)) for n in ("metrics.jsonl", "log.txt", ".lock")),
    Case("link as state", unfinished(link(STATE)), "leads outside", ("resume",)),
    *(Case(f"link as {n}", link(n, "folder"), "leads outside", ("resume",)) for n in ("figures", "checkpoints")),
    Case("link as figures", link("figures", "folder"), "leads outside", ("report",)),
    Case("link as report", link("report.html"), "leads outside", ("report", "resume")),
    Case("link as results", link("results.json"), "leads outside", ("report", "resume")),
    Case("link as weights", link(WEIGHTS), "not a regular file; refused", READERS),
    Case("link as encoder", link("checkpoints/encoder", "folder"), "leads outside", READERS),
    Case("link within", link("metrics.jsonl", "config.yaml"), REFUSED, ("resume",)),
    Case("link in a circle", both(without("log.txt"), lambda run: (run / "log.txt").symlink_to("log.txt")), REFUSED, ("resume",)),
    Case("link as a part", link(".config.yaml.part"), NOTHING, ("resume",)),
    *(Case(f"FIFO as {n}", fifo(n), "a FIFO or a device; refused", EVERY) for n in ("config.yaml", "manifest.json")),
    *(Case(f"FIFO as {n}", fifo(n), REFUSED, ("resume",)) for n in ("metrics.jsonl", "log.txt", ".lock", LOGITS, "splits.json")),
    *(Case(f"FIFO as {n}", fifo(n), REFUSED, ("report",)) for n in ("results.json", "report.html", "figures/attention.png")),
    Case("FIFO as weights", fifo(WEIGHTS), "not a regular file; refused", READERS),
    Case("FIFO as a part", fifo(".manifest.json.part"), NOTHING, ("resume",)),
    Case("FIFO as encoder config", fifo("checkpoints/encoder/config.json"), NOTHING, ("finetune",)),
    Case("FIFO as predictions", fifo("predictions.parquet"), REFUSED, ("resume",)),
    Case("folder as config", folder("config.yaml"), "is missing"),
    *(Case(f"folder as {n}", folder(n), n, ("resume",)) for n in ("metrics.jsonl", "log.txt", ".lock", "results.json")),
    Case("folder as report", folder("report.html"), "report.html", ("report", "resume")),
    Case("folder as figure", folder("figures/scores.png"), "scores.png", ("resume",)),
    Case("folder as picture", folder("figures/attention.png"), "attention.png", ("report",)),
    Case("folder as weights", folder(WEIGHTS), "not a regular file", READERS),
    Case("folder as a part", folder(".manifest.json.part"), NOTHING, ("resume",)),
    Case("file as checkpoints", put("checkpoints", "x"), "checkpoints", READERS),
    Case("file as figures", put("figures", "x"), "figures", ("resume",)),
    Case("predictions replaced", put("predictions.parquet", PICKLE), NOTHING, ("report", "resume", "evaluate")),
    Case("samples replaced", put("samples.json", PICKLE), "not valid JSON", ("report",)),
    Case(
        "samples that do not match",
        put("samples.json", '{"samples": [{"step": 1, "given": [], "said": [""]}]}'),
        "samples.0",
        ("report",),
    ),
    # chains, texts
    Case("a chain without end", parent_loop, "has no end", STARTS),
    Case("escape in the command", change("manifest.json", command="\x1b[2J\x1b]0;owned\x07"), NOTHING, ("report", "resume")),
    Case(
        "escape in the versions", change("manifest.json", packages={"torch": "\x1b[2J9\u202e"}), NOTHING, ("reproduce",), "done"
    ),
    Case("script in the manifest", change("manifest.json", command=INSIDE, **{INSIDE: INSIDE}), NOTHING, ("report",)),
    Case("script in the results", change("results.json", pretrain={INSIDE: 1.0}), NOTHING, ("report",)),
    Case("script as metric", change("results.json", metric=INSIDE, counted=INSIDE), NOTHING, ("report",)),
    Case("half a character", change("manifest.json", command="\ud800"), NOTHING, ("report", "resume")),
]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    """A finished run to be spoilt in copies."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("small"))
    try:
        assert cli.run(SMALL) == 0
        return latest()
    finally:
        os.chdir(before)


@pytest.fixture
def within() -> Iterator[None]:
    """Ends a test that hangs, and one that asks for a lot of memory."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def snapshot(*roots: Path) -> dict[str, str]:
    """Every file and link outside of the folders that a verb may write, with its content."""
    found = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            mode = path.lstat().st_mode
            content = os.readlink(path) if stat.S_ISLNK(mode) else ""
            if stat.S_ISREG(mode) and path.stat().st_size > 2**27:
                content = str(path.stat().st_size)
            elif stat.S_ISREG(mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = f"{stat.S_IFMT(mode)} {content}"
    return found


def surroundings(tmp_path: Path, verb: str) -> dict[str, str]:
    """All but what the verb may write: the run's own folder for resume and report, `outputs` for the others."""
    mine = "bad" if verb in ("resume", "report") else "outputs"
    return {k: v for k, v in snapshot(tmp_path).items() if Path(k).relative_to(tmp_path).parts[0] not in (mine, "cache")}


@pytest.mark.parametrize(("case", "verb"), [pytest.param(c, v, id=f"{c.name}-{v}") for c in CASES for v in c.verbs])
def test_a_hostile_folder_is_harmless(small_run, tmp_path, case, verb, ptmrun, within):
    run = tmp_path / "bad"
    shutil.copytree(small_run, run)
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "outside" / "config.yaml").write_text("precious")
    status = case.status if verb == "resume" or case.status == "done" else "done"
    change("manifest.json", status=status)(run)
    drop_digests(run)
    case.spoil(run)
    before, memory = surroundings(tmp_path, verb), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    code, out, err = ptmrun(*VERBS[verb](run))
    took, grown = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if case.expected:
        assert code == 2, out
        assert case.expected in err
    else:
        assert code in (0, 1), err
    assert 0 <= len(err.splitlines()) <= (2 if "the run so far is in" in err else 1), err
    assert "Traceback" not in out + err
    assert all(c.isprintable() or c == "\n" for c in out + err)
    assert not list(tmp_path.rglob("canary"))
    assert surroundings(tmp_path, verb) == before
    assert took < 20, "seconds of CPU time"
    assert grown < 600 * 1024, "KiB of memory"
    for page in tmp_path.rglob("report.html"):
        if page.is_file() and not page.is_symlink():
            assert INSIDE not in page.read_text()


@pytest.mark.parametrize("verb", STARTS)
def test_latest_that_points_elsewhere(small_run, tmp_path, verb, ptmrun):
    """outputs/latest, made by someone else, is replaced and never followed."""
    (tmp_path / "outside").mkdir()
    Path("outputs").mkdir()
    Path("outputs/latest").symlink_to(tmp_path / "outside")
    code, _, err = ptmrun(*VERBS[verb]("outputs/latest"))
    assert code == 2
    assert "not a run folder, or not a whole one" in err
    assert ptmrun(*VERBS[verb](small_run))[0] == 0
    assert latest().parent == tmp_path / "outputs"
    assert list((tmp_path / "outside").iterdir()) == []
    assert not [p for p in Path("outputs").iterdir() if p.name.startswith(".latest")]


@pytest.mark.parametrize("verb", EVERY)
def test_a_folder_name_with_a_line_break_and_an_escape(small_run, tmp_path, verb, ptmrun):
    run = tmp_path / "a\nb\x1b[2J"
    shutil.copytree(small_run, run)
    (run / "manifest.json").unlink()
    code, out, err = ptmrun(*VERBS[verb](run))
    assert code == 2
    assert all(line.startswith("ptmrun: ") for line in err.splitlines())
    assert "\x1b" not in out + err


def test_a_hostile_parent_of_a_parent(small_run, tmp_path, ptmrun):
    """finetune -> evaluate: what the parent names as its own parent is looked at as closely."""
    assert ptmrun("stage=finetune", f"init={small_run}")[0] == 0
    child = latest()
    grand = tmp_path / "grand"
    shutil.copytree(small_run, grand)
    put(WEIGHTS, PICKLE)(grand)
    drop_digests(child)
    config = yaml.safe_load((child / "config.yaml").read_text())
    (child / "config.yaml").write_text(yaml.safe_dump(config | {"init": str(grand)}))
    code, _, err = ptmrun("stage=evaluate", f"init={child}")
    assert code == 2
    assert "grand/checkpoints/encoder/model.safetensors: not a whole safetensors file" in err


def test_what_is_no_regular_file_is_not_read(tmp_path, within):
    """Also where no run folder's own check comes first."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/hostname")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, expected in {"fifo": "not a regular file", "link": "cannot be read", "large": "11 bytes, more than the 10"}.items():
        with pytest.raises(UserError, match=expected):
            safe_read.read(tmp_path / name, most=10)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        safe_read.read(tmp_path)


def parquet(**columns: object) -> Callable[[Path], object]:
    return lambda run: pq.write_table(pa.table(columns), run / "predictions.parquet")


MANY = pa.array(np.zeros(10_000_001, dtype=np.int8))  # a small file, and much more in memory
SIDE_BY_SIDE = {
    "pickle": (put("predictions.parquet", PICKLE), "no predictions of ptmrun"),
    "bomb": (parquet(labels_per_class=MANY, repeat=MANY, label=MANY, prediction=MANY), "rows, more than the 10,000,000"),
    "other columns": (parquet(a=[1]), "no predictions of ptmrun"),
    "other types": (parquet(labels_per_class=["x"], repeat=["x"], label=[1], prediction=[1]), "no predictions of ptmrun"),
    "FIFO": (fifo("predictions.parquet"), REFUSED),
    "link": (link("predictions.parquet"), "leads outside"),
    "results": (change("results.json", by_labels=[]), "by_labels is not what"),
    "score of text": (change("results.json", score="x"), "score is not what"),
    "metric": (change("results.json", metric=ESCAPE), "metric is not what"),
    "counted": (change("results.json", counted=ESCAPE), "counted is not what"),
    "key of words": (change("results.json", words={ESCAPE: 1}), "is not what"),
    "metrics": (put("metrics.jsonl", "3\n"), "metrics.jsonl line 1"),
    "config": (edit("config.yaml", "seed: 0", f"seed: {CALL}"), PLAIN),
    "manifest": (change("manifest.json", parents=["../../x"]), "parents.0 is not what"),
}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_compare_refuses_and_list_goes_on(small_run, tmp_path, name, ptmrun, within):
    """A run that was tampered with cannot be compared; a list of it and others goes on."""
    spoil, expected = SIDE_BY_SIDE[name]
    (tmp_path / "outside").mkdir()
    for run in ("good", "bad"):
        shutil.copytree(small_run, tmp_path / "runs" / run)
    drop_digests(tmp_path / "runs" / "bad")
    edit("config.yaml", "lr: 0.004", "lr: 0.005")(tmp_path / "runs" / "bad")
    spoil(tmp_path / "runs" / "bad")
    before = snapshot(tmp_path / "runs", tmp_path / "outside")
    code, out, err = ptmrun("compare", tmp_path / "runs" / "good", tmp_path / "runs" / "bad")
    assert code == 2, out
    assert expected in err
    assert len(err.splitlines()) == 1
    code, out, err = ptmrun("list", tmp_path / "runs")
    assert (code, err) == (0, "")
    assert "good" in out
    assert all(c.isprintable() or c == "\n" for c in out)
    assert ptmrun("list", tmp_path / "runs", "--tree")[0] == 0
    assert snapshot(tmp_path / "runs", tmp_path / "outside") == before
    assert not list(tmp_path.rglob("canary"))
