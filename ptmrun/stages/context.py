"""What the stages of one run share: its data, device and weights, and a fit that writes into its folder."""

import importlib
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ptmrun import rng
from ptmrun.config import schema as config
from ptmrun.config.init_source import origin
from ptmrun.config.schema import Config, Loop
from ptmrun.data.epochs import Epochs
from ptmrun.errors import Interrupted, UserError
from ptmrun.models import batchnorm
from ptmrun.runs.folder import Run
from ptmrun.runs.progress import Bar
from ptmrun.stages import probe
from ptmrun.storage import tensor_files
from ptmrun.training import device, recovery
from ptmrun.training import loop as train
from ptmrun.training.signals import Stop

ENCODER = "checkpoints/encoder"


TOKENIZER = "checkpoints/tokenizer"  # of text models


SAME_DATA = {"augment", "cache_gb", "download", "errors", "max_unreadable", "normalise"}  # keys that leave data as they are


LEAST, PASSES = 300, 3  # steps of fine-tuning at least, and passes over the labels at least, where steps are auto


CHAIN = 20  # runs that start from one another, at most


FIT_IMAGES = 512  # for what an encoder learns from training images before it is trained


START = "checkpoints/start.safetensors"  # encoder weights from outside, or copied from a run whose pretraining was not complete


@dataclass
class Context:
    """What the stages of one run share."""

    run: Run
    cfg: Config
    data: Any  # images.Images or texts.Texts
    device: torch.device
    inputs: Any  # makes what splits give to what encoders take
    stop: Stop
    fitted: dict[str, torch.Tensor] = field(default_factory=dict)  # what encoders learned from training images, once a run

    def part(self, group: str) -> Any:
        return part_of(self.cfg, group)

    def autocast(self) -> Any:
        return device.autocast(self.device, self.cfg.device.precision)

    def encoder(self, purpose: str = "encoder", seed: int | None = None) -> Any:
        """A new encoder with the initial weights of a seed (the run's own unless given)."""
        rng.seed_everything(self.cfg.seed if seed is None else seed, purpose)
        attention = device.attention(self.device, self.cfg.device.precision)
        encoder = self.part("model").build(self.cfg.model, *self.data.shape, attention)
        encoder.to(self.device)
        if hasattr(encoder, "fit"):
            encoder.load_state_dict(self.fit(encoder), strict=False)
        return encoder

    def fit(self, encoder: Any) -> dict[str, torch.Tensor]:
        """The buffers of an encoder that come from training images: those this run starts from, or new ones."""
        if folder := source(self.run, self.cfg, ENCODER):
            return encoder.fitted(folder)
        if not self.fitted:
            train = self.data.train
            images = next(train.batches([rng.permutation(self.cfg.seed, "fit", len(train))[:FIT_IMAGES]]))
            self.fitted = encoder.fit(self.inputs(images))
        return self.fitted

    def pretrained(self) -> Any:
        """The encoder that fine-tuning starts from: this run's, the parent's, one from outside, or a random one."""
        encoder = self.encoder()
        load_weights(encoder, self.run, self.cfg)
        return encoder

    def objective(self) -> Any:
        """The task's objective with its initial heads, on the encoder that this run starts from."""
        encoder = self.pretrained()
        rng.seed_everything(self.cfg.seed, "objective")
        known = {"classes": len(self.data.classes)} if "labels" in config.spec("task", self.cfg.task.name).needs else {}
        return self.part("task").Objective(encoder, self.cfg.task, **known).to(self.device)

    def refresh(self, encoder: Any, split: Any) -> None:
        """See `normalisation.refresh`: by samples of a split, evenly spaced."""
        with self.autocast():
            batchnorm.refresh(encoder, (self.inputs(batch) for batch in split.spaced(batchnorm.SEEN).all()))

    def features(self, encoder: Any, split: Any, dropout: bool = False) -> Any:
        return probe.features(encoder, split, self.inputs, self.autocast, dropout=dropout)


def part_of(cfg: Config, group: str) -> Any:
    """The module that the choice of a group names (the installed YAML says which, not the saved config)."""
    folder = {"model": "models", "task": "objectives", "downstream": "downstream", "dataset": "data.sources"}[group]
    return importlib.import_module(f"ptmrun.{folder}.{config.spec(group, getattr(cfg, group).name).module}")


def source(run: Run, cfg: Config, name: str) -> Path | None:
    """A file or folder of this run or, when this run has not made it, of the run that `init` names, and so on."""
    for _ in range(CHAIN):
        if run.path(name).exists():
            return run.path(name)
        if origin(cfg.init) != "run":
            return None
        run = Run.open(Path(cfg.init))
        cfg = config.load(run.path("config.yaml"))
    raise UserError(f"init={cfg.init}: the chain of runs that start from one another has no end")


def load_weights(encoder: Any, run: Run, cfg: Config) -> bool:
    """Gives an encoder what this run has pretrained or began with, or the run that `init` names; whether there is any."""
    if folder := source(run, cfg, ENCODER):
        encoder.load(folder)
    elif file := source(run, cfg, START):
        tensor_files.into(encoder, encoder.adjusted(tensor_files.load(file)[0])[0], file)
    else:
        return False
    return True


def weights_hash(run: Run) -> str | None:
    """Of the encoder that was fine-tuned: this run's, or its parent's."""
    parents = [p["weights_sha256"] for p in run.manifest["parents"]]
    return run.manifest.get("weights_sha256") or next(iter(parents), None)


def check_stop(stop: Stop) -> None:
    """Raises Interrupted when a signal is pending."""
    if signum := stop.pending():
        raise Interrupted(signum)


def labelled(context: Context) -> bool:
    """Whether there is something to fine-tune for: classes, or answers of another kind."""
    train = context.data.train
    return len(context.data.classes) > 1 if train.labels is not None else getattr(train, "answered", False)


def chosen_stages(context: Context) -> list[str]:
    """The stages that the config asks for and the data allows."""
    if context.cfg.stage != "all":
        return context.cfg.stage.split("+")
    return ["pretrain", "finetune", "evaluate"] if labelled(context) else ["pretrain"]


def parent_of(cfg: Config, start: Path | None = None) -> dict[str, Any]:
    """Name, weight hash and data of the run that `init` names; `start` is where the weights of an unfinished one were copied."""
    parent = Run.open(Path(cfg.init))
    saved = config.load(parent.path("config.yaml"))
    folder = source(parent, saved, ENCODER)
    if folder is not None:
        weights: str | None = encoder_hash(folder)
    elif (file := start if start and start.exists() else source(parent, saved, START)) is not None:
        weights = tensor_files.sha256(tensor_files.load(file)[0])
    elif tensors := unfinished(parent):
        weights = tensor_files.sha256(tensors)
    elif cfg.stage == "evaluate":  # what was fine-tuned from random weights can still be evaluated
        weights = None
    else:
        raise UserError(f"init={cfg.init}: that run has no {ENCODER}, nor a checkpoint of its pretraining")
    data = parent.manifest.get("data", {}).get("fingerprint") if reads(saved) == reads(cfg) else None
    return {"run": parent.folder.resolve().name, "weights_sha256": weights, "data": data}


def reads(cfg: Config) -> list[Any]:
    """The settings that decide what the data is."""
    labelled = cfg.downstream.model_dump(exclude={"labels_per_class"})
    return [cfg.dataset.model_dump(exclude=SAME_DATA), labelled, getattr(cfg.model, "length", None)]


def unfinished(run: Run) -> dict[str, torch.Tensor]:
    """The encoder's weights in the last checkpoint of a run's pretraining; empty where there is none."""
    file = run.path("checkpoints", "state", "pretrain.safetensors")
    return tensor_files.part(tensor_files.load(file)[0], "model.encoder.") if file.exists() else {}


def encoder_hash(folder: Path) -> str:
    files = {folder / "model.safetensors", *folder.glob("*.safetensors")}  # the library's, and what it has no place for
    return tensor_files.sha256({k: v for file in files for k, v in tensor_files.load(file)[0].items()})


def batches_of(context: Context, model: Any, split: Any, loop: Any, seed: int, purpose: str) -> Epochs:
    """Batches of a split as `model` wants them."""
    size = min(loop.batch_size, len(split))
    if size // min(loop.accumulate, size) == 1 and any(isinstance(m, _BatchNorm) and m.training for m in model.modules()):
        noun = context.data.noun
        raise UserError(
            f"{loop.section}: batch normalisation needs at least 2 {noun} at a time; with {loop.section}.batch_size="
            f"{loop.batch_size}, {loop.section}.accumulate={loop.accumulate} and {len(split)} {noun} there is 1"
        )
    return context.data.batches(model, split, context.cfg, loop, size, seed, purpose, context.inputs)


def passes(loop: Loop, samples: int) -> int:
    """Optimizer steps of PASSES over so many samples."""
    return math.ceil(PASSES * samples / min(loop.batch_size, samples))


def steps_of(loop: Loop, samples: int) -> int:
    """Optimizer steps of a loop over so many samples."""
    if loop.steps == "auto":
        return max(LEAST, passes(loop, samples))
    if loop.steps is not None:
        return loop.steps
    assert loop.epochs is not None
    return max(1, math.ceil(loop.epochs * samples / min(loop.batch_size, samples)))


def layer_decay_of(loop: Loop, samples: int) -> float:
    """How the rate falls from a block to the one below it, in a loop over so many samples: with auto lower blocks learn more
    slowly from few labels; with many that leaves too much as it was."""
    if loop.layer_decay != "auto":
        return loop.layer_decay
    return 1.0 if passes(loop, samples) > LEAST else config.LAYER_DECAY


def depth_of(encoder: Any, name: str) -> int:
    """How deep a parameter of an encoder with a head or heads sits: the heads one above the encoder's last block."""
    return encoder.depth_of(name) if name.startswith("encoder.") else encoder.depth + 1


def fit(
    context: Context,
    model: Any,
    split: Any,
    loop: Any,
    steps: int,
    seed: int,
    tags: dict[str, Any],
    **extra: Any,
) -> dict[str, float]:
    """train.fit with the files, the progress bar and the random numbers of `tags` (stage, and trial for fine-tuning)."""
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
            others = [e for e in run.manifest.get("recoveries", []) if e.get("purpose") != purpose]
            run.update(recoveries=[*others, *events])

    with Bar(run, purpose, steps, quiet=tags["stage"] != "pretrain") as bar:
        plan = train.Plan(
            loop=loop,
            steps=steps,
            seed=seed,
            purpose=purpose,
            samples=len(split),
            batch_size=batches.batch_size,
            depth_of=partial(depth_of, encoder),
            depth=encoder.depth + 1,
            autocast=context.autocast,
            file=run.path("checkpoints", "state", f"{purpose.replace('/', '_')}.safetensors"),
            metric=lambda line: run.metric({**tags, **line}),
            cut=partial(run.cut_metrics, tags),
            stop=context.stop.pending,
            show=bar.show,
            forward=torch.compile(model) if context.cfg.device.compile else None,
            precision=context.cfg.device.precision,
            recover=context.cfg.on_nan == "recover",
            recovered=recovered,
            bad=run.path("checkpoints", "nan", f"{purpose.replace('/', '_')}.safetensors"),
            replay=f"ptmrun replay {run.folder}",
            **extra,
        )
        return train.fit(model, batches, plan)
