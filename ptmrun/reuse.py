"""`skip_done=true`: what a stage depends on, and taking its result from a run that did the same."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator

from ptmrun import config
from ptmrun.changes import HARMLESS
from ptmrun.context import Context
from ptmrun.errors import UserError
from ptmrun.run import Run

SECTIONS = {  # of the config, that a stage's outcome depends on beside the weights it starts from
    "pretrain": ("model", "task", "dataset", "pretrain"),
    "finetune": ("model", "dataset", "downstream", "finetune"),
    "evaluate": ("model", "dataset", "downstream", "finetune", "evaluate"),
}
FILES = {  # that a stage makes; with the last of them in place it finds its work done
    "pretrain": (
        "figures/curves.png",
        "figures/reconstructions.png",
        "figures/attention.png",
        "figures/views.png",
        "figures/layers.png",
        "figures/text_attention.png",
        "samples.json",
        "checkpoints/heads.safetensors",
        "checkpoints/encoder",
    ),
    "finetune": ("checkpoints/finetuned",),
    "evaluate": ("checkpoints/logits",),
}
METRICS = {"pretrain": "pretrain", "finetune": "finetune", "evaluate": "baseline"}


def inputs(context: Context, stage: str) -> str:
    """A hash of everything that the outcome of a stage depends on."""
    cfg, manifest = config.plain(context.cfg), context.run.manifest
    sections = {s: {k: v for k, v in cfg[s].items() if f"{s}.{k}" not in HARMLESS} for s in (*SECTIONS[stage], "device")}
    weights = [p["weights_sha256"] for p in manifest["parents"]]
    weights += [] if stage == "pretrain" else [manifest.get("weights_sha256")]
    weights += [manifest.get("finetuned_sha256")] if stage == "evaluate" else []
    versions = [manifest[k] for k in ("code_sha256", "packages", "hardware")]
    data = context.data.fingerprint
    if stage == "pretrain":
        data = getattr(context.data, "corpus_fingerprint", data)
    everything = [stage, sections, cfg["seed"], cfg["on_nan"], weights, data, versions]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def take(context: Context, stage: str, wanted: str) -> None:
    """Copies a stage's files and metrics from another run in `outputs` whose stage had the same inputs, where there is one."""
    run = context.run
    if run.path(FILES[stage][-1]).exists():
        return
    for twin in others(run):
        if twin.manifest.get("inputs", {}).get(stage) == wanted and twin.path(FILES[stage][-1]).exists():
            run.cut_metrics({"stage": METRICS[stage]}, -1)
            for line in twin.metrics():
                if line["stage"] == METRICS[stage]:
                    run.metric({k: v for k, v in line.items() if k != "time"})
            for name in FILES[stage]:
                copy(twin, run, name)
            run.update(reused={**run.manifest.get("reused", {}), stage: twin.folder.resolve().name})
            run.say(f"Stage {stage} has been done with the same inputs: taken from {twin.folder}")
            return


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


def copy(source: Run, target: Run, name: str) -> None:
    """A file or folder of one run into another, whole or not at all."""
    path, to = source.path(name), target.path(name)
    if not path.exists():
        return
    part = to.with_name(f".{to.name}.part")
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for file in path.iterdir():
            shutil.copyfile(source.path(name, file.name), part / file.name)
    else:
        shutil.copyfile(path, part)
    os.replace(part, to)
