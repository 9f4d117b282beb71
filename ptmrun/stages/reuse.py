"""`skip_done=true`: what a stage depends on, and taking its result from a run that did the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from ptmrun.config import parsing
from ptmrun.config.schema import Role, role_of
from ptmrun.config.watched import bare
from ptmrun.errors import UserError
from ptmrun.reports import figures
from ptmrun.reports.captions import CAPTIONS
from ptmrun.runs.console import console
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import REFERENCE, source
from ptmrun.stages.context import Context
from ptmrun.storage import tensor_files

SECTIONS = {  # of the config, that a stage's outcome depends on beside the weights it starts from
    "pretrain": ("model", "task", "dataset", "pretrain"),
    "finetune": ("model", "dataset", "downstream", "finetune"),
    "evaluate": ("model", "dataset", "downstream", "finetune", "evaluate"),
}
FILES = {  # that a stage makes; with the last of them in place it finds its work done
    "pretrain": (
        *(f"figures/{name}.png" for name, caption in CAPTIONS.items() if caption.stage == "pretrain"),
        "samples.json",
        "checkpoints/heads.safetensors",
        "checkpoints/encoder",
    ),
    "finetune": (REFERENCE, "checkpoints/finetuned"),
    "evaluate": ("checkpoints/logits",),
}
METRICS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "evaluate": "baseline",
}  # the tag of its lines and recoveries
PROBED = {"probe_knn", "probe_linear", "effective_rank", "feature_std"}  # on labelled samples, which a pretraining does not need


def inputs_hash(context: Context, stage: str) -> str:
    """A hash of everything that the outcome of a stage depends on."""
    cfg, manifest = parsing.plain(context.cfg), context.run.manifest
    own = bare(context.cfg)
    sections = {
        s: {k: v for k, v in cfg[s].items() if Role.HARMLESS not in role_of(own, f"{s}.{k}")}
        for s in (*SECTIONS[stage], "device")
    }
    weights = [p["weights_sha256"] for p in manifest["parents"]]
    weights += [] if stage == "pretrain" else [manifest.get("weights_sha256")]
    weights += [finetuned(context), manifest.get("compute")] if stage == "evaluate" else []
    versions = [manifest[k] for k in ("code_sha256", "packages", "hardware")]
    data = context.data.corpus_print if stage == "pretrain" else context.data.fingerprint
    everything = [stage, sections, cfg["seed"], cfg["on_nan"], weights, data, versions]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def finetuned(context: Context) -> dict[str, str]:
    """Hashes of what is to be evaluated: this run's, or those of the one that it starts from."""
    folder = source(context.run, context.cfg, FILES["finetune"][-1])
    return Run.open(folder.parent.parent).manifest.get("finetuned_sha256", {}) if folder else {}


def take(context: Context, stage: str, wanted: str) -> None:
    """Copies a stage's files and metrics, its alarms and recoveries, from another run in `outputs` whose stage had the same
    inputs, where there is one. What it read counts as read; what it probed is left out where its labelled texts were others."""
    run = context.run
    if run.path(FILES[stage][-1]).exists():
        return
    for twin in others(run):
        if twin.manifest.get("inputs", {}).get(stage) == wanted and twin.path(FILES[stage][-1]).exists() and sound(twin, stage):
            same = twin.manifest.get("data", {}).get("fingerprint") == context.data.fingerprint
            run.cut_metrics({"stage": METRICS[stage]}, -1)
            for line in twin.metric_lines():
                if line["stage"] == METRICS[stage]:
                    run.metric({k: v for k, v in line.items() if k != "time" and (same or k not in PROBED)})
            sections, noted = (*SECTIONS[stage], "device"), context.cfg.noted
            noted.update(key for key in twin.manifest.get("read", []) if key.split(".")[0] in sections)
            if stage == "pretrain" and same:
                run.update(alarms=twin.manifest.get("alarms", []))
            mine = [e for e in run.manifest.get("recoveries", []) if not belongs(e, stage)]
            theirs = [e for e in twin.manifest.get("recoveries", []) if belongs(e, stage)]
            run.update(recoveries=[*mine, *theirs], reused={**run.manifest.get("reused", {}), stage: twin.folder.resolve().name})
            if not same:
                figures.curves(run)
            for name in FILES[stage]:
                if same or name != "figures/curves.png":
                    copy(twin, run, name)
            run.say(f"Stage {stage} has been done with the same inputs: taken from {twin.folder}")
            return


def sound(twin: Run, stage: str) -> bool:
    """Whether the checkpoints of a stage are as they were written; says which is not."""
    try:
        for name in FILES[stage]:
            for path in [twin.path(name), *twin.path(name).glob("*")]:
                if path.suffix == ".safetensors" and path.exists():
                    tensor_files.load(path)
    except UserError as error:
        console.print(f"skip_done: not taken from {twin.folder}: {error}", markup=False)
        return False
    return True


def belongs(recovery: dict[str, Any], stage: str) -> bool:
    return recovery["purpose"].split("/")[0] == METRICS[stage]


def others(run: Run) -> Iterator[Run]:
    """The other runs in the same folder of outputs, those of sweeps included."""
    root = run.folder.resolve().parent
    root = root.parent.parent if (root / "job.json").exists() else root
    for path in sorted([*root.glob("*/manifest.json"), *root.glob("*/*/*/manifest.json")]):
        if not path.parent.is_symlink() and path.parent.name != run.folder.resolve().name:
            try:
                yield Run.open(path.parent)
            except UserError:
                continue


def copy(twin: Run, target: Run, name: str) -> None:
    """A file or folder of one run into another, whole or not at all."""
    path, to = twin.path(name), target.path(name)
    if not path.exists():
        return
    part = to.with_name(f".{to.name}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for file in path.iterdir():
            shutil.copyfile(twin.path(name, file.name), part / file.name)
    else:
        shutil.copyfile(path, part)
    os.replace(part, to)
