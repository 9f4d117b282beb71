"""What the stages of one run share: its networks and data, and the plan of a fit that writes into its folder."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ptmrun import rng
from ptmrun.data.epochs import Epochs
from ptmrun.data.modality import Data
from ptmrun.errors import UserError
from ptmrun.models import batchnorm
from ptmrun.models.base import Encoder
from ptmrun.runs.progress import Bar
from ptmrun.stages import probe
from ptmrun.stages.networks import Networks
from ptmrun.training import recovery
from ptmrun.training.plan import Plan
from ptmrun.training.processes import ALONE, Processes
from ptmrun.training.signals import Stop

FIT_SAMPLES = 512  # for what an encoder learns from training samples before it is trained


@dataclass
class Context(Networks):
    """What the stages of one run share."""

    data: Data
    stop: Stop
    learned: dict[str, Tensor] = field(default_factory=dict)  # what encoders learned from training samples, once a run
    processes: Processes = ALONE

    def buffers(self, encoder: Encoder) -> dict[str, Tensor]:
        """Those of an encoder that come from training samples: saved ones, or new ones."""
        if saved := super().buffers(encoder):
            return saved
        if not self.learned:
            train = self.data.train
            samples = next(train.batches([rng.permutation(self.cfg.seed, "fit", len(train))[:FIT_SAMPLES]]))
            self.learned = encoder.learn_buffers(self.processor(samples))
        return self.learned

    def recompute_statistics(self, encoder: Encoder, split: Any) -> None:
        """See `batchnorm.recompute_statistics`: by samples of a split, evenly spaced."""
        with self.autocast():
            samples = split.evenly_spaced(batchnorm.SEEN).all()
            batchnorm.recompute_statistics(encoder, (self.processor(batch) for batch in samples))

    def state_file(self, purpose: str) -> Path:
        """Where a fit's resumable state stands."""
        return self.run.path("checkpoints", "state", f"{purpose.replace('/', '_')}.safetensors")

    def features(
        self, encoder: Encoder, split: Any, dropout: bool = False, look: Callable[[Any, Any], Tensor] | None = None
    ) -> Any:
        return probe.features(encoder, split, self.processor, self.autocast, dropout=dropout, look=look)


def labelled(context: Context) -> bool:
    """Whether there is something to fine-tune for: classes, or answers of another kind."""
    train = context.data.train
    return len(context.classes) > 1 if train.labels is not None else train.answered


def finetunes(context: Context) -> bool:
    """Whether there is something to fine-tune for, and fine-tuning has a part in it."""
    return labelled(context) and context.problem.trains


def chosen_stages(context: Context) -> list[str]:
    """The stages that the config asks for and the data allows."""
    stages = context.cfg.stage.split("+")
    if stages == ["all"]:
        stages = ["pretrain", "finetune", "evaluate"] if labelled(context) else ["pretrain"]
    return stages if context.problem.trains else [stage for stage in stages if stage != "finetune"]


def place_of(context: Context, stage: str) -> str:
    """Where in its run a stage stands, in words before its name: "stage 2 of 3: "; "" where it is the only one."""
    stages = chosen_stages(context)
    return f"stage {stages.index(stage) + 1} of {len(stages)}: " if len(stages) > 1 and stage in stages else ""


def batches_of(context: Context, model: Any, split: Any, loop: Any, seed: int, purpose: str) -> Epochs:
    """Batches of a split as `model` wants them."""
    size = min(loop.batch_size, len(split))
    if size // min(loop.accumulate, size) == 1 and any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        noun = context.data.noun
        raise UserError(
            f"{loop.section}: batch normalisation needs at least 2 {noun} at a time; with {loop.section}.batch_size="
            f"{loop.batch_size}, {loop.section}.accumulate={loop.accumulate} and {len(split)} {noun} there is 1"
        )
    return context.data.batches(model, split, context.cfg, loop, size, seed, purpose, context.processor)


def depth_of(encoder: Any, name: str) -> int:
    """How deep a parameter of an encoder with a head or heads sits: the heads one above the encoder's last block."""
    return encoder.depth_of(name) if name.startswith("encoder.") else encoder.depth + 1


@contextlib.contextmanager
def all_processes(context: Context, clock: str, order: dict[str, Any]) -> Iterator[None]:
    """What runs inside is a training of all processes, to which the main one calls the others; each has a part of the threads.
    The CPU seconds of the others come to those of `clock` (see Run.clock)."""
    processes, threads, begun = context.processes, torch.get_num_threads(), time.process_time()
    if processes.size == 1:
        yield
        return
    if processes.main:
        processes.send(order)
    torch.set_num_threads(max(1, context.cfg.device.threads // processes.here))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
    seconds = processes.gather(time.process_time() - begun)
    if processes.main:
        context.run.spend(clock, sum(seconds[1:]))


@contextlib.contextmanager
def planned(
    context: Context,
    model: Any,
    split: Any,
    loop: Any,
    steps: int,
    seed: int,
    tags: dict[str, Any],
    trial: Any = None,
    after: float = 0.0,
    **extra: Any,
) -> Iterator[tuple[Epochs, Plan]]:
    """Batches and plan of a fit with the files and the random numbers of `tags` (stage, and trial for fine-tuning), while its
    progress is shown (after: see Bar). Other processes train the same by `tags`, `steps` and the fields of `trial`."""
    run, encoder = context.run, model.encoder
    purpose = "/".join(map(str, tags.values()))
    batches = batches_of(context, model, split, loop, seed, purpose)

    def recovered(events: list[dict[str, Any]]) -> None:
        """Says what is new and makes the manifest hold exactly these for this fit."""
        known = [e for e in run.manifest.get("recoveries", []) if e.get("purpose") == purpose]
        events = [{"purpose": purpose, **e} for e in events]
        if events != known:
            for event in events[len(known) :]:
                run.say(f"  {recovery.describe(event)}")
            run.replace_recoveries(purpose, events)

    def pending() -> int | None:
        run.there()
        return context.stop.pending()

    if context.cfg.device.compile:
        rng.leave_untraced()
    place = place_of(context, "evaluate" if tags["stage"] == "baseline" else tags["stage"])
    order = {"tags": tags, "steps": steps, "trial": astuple(trial) if trial else None}
    order |= {"probe_at": sorted(extra.get("probe_at", ())), "save_last": extra.get("save_last", False)}
    clock = "/".join([tags["stage"], *([trial.name] if trial else [])])
    quiet = tags["stage"] != "pretrain"
    with all_processes(context, clock, order), Bar(run, f"{place}{purpose}", steps, quiet, after) as bar:
        yield (
            batches,
            Plan(
                loop=loop,
                steps=steps,
                seed=seed,
                purpose=purpose,
                samples=len(split),
                batch_size=batches.batch_size,
                depth_of=partial(depth_of, encoder),
                depth=encoder.depth + 1,
                autocast=context.autocast,
                file=context.state_file(purpose),
                metric=lambda line: run.metric({**tags, **line}),
                cut=partial(run.cut_metrics, tags),
                stop=pending,
                show=bar.show,
                forward=torch.compile(model) if context.cfg.device.compile else None,
                precision=context.cfg.device.precision,
                recover=context.cfg.on_nan == "recover",
                recovered=recovered,
                bad=run.path("checkpoints", "nan", f"{purpose.replace('/', '_')}.safetensors"),
                replay=f"ptmrun replay {run.typed}",
                processes=context.processes,
                shard=context.cfg.device.shard and context.processes.size > 1,
                **extra,
            ),
        )
