"""What comes before the stages: device, data, sizes, and the weights that a run starts from."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ptmrun.config import schema as config
from ptmrun.config.init_source import OUTSIDE, origin
from ptmrun.config.schema import Config
from ptmrun.data.images import load as images
from ptmrun.downstream.class_counts import imbalance
from ptmrun.errors import UserError
from ptmrun.finetuning import methods
from ptmrun.models import library_format, pretrained
from ptmrun.reports import figures
from ptmrun.runs.folder import Run
from ptmrun.runs.progress import Bar
from ptmrun.stages import budget
from ptmrun.stages.context import ENCODER, START, TOKENIZER, Context, check_stop, labelled, parent_of, part_of, source, unfinished
from ptmrun.stages.trials import label_counts
from ptmrun.storage import tensor_files
from ptmrun.training import device
from ptmrun.training.signals import Stop


def prepare(run: Run, cfg: Config, stop: Stop) -> Context:
    """Device, data and model sizes; everything `auto` becomes a value, and the saved config complete."""
    cfg, where, notes = device.resolve(cfg)
    cfg, chosen = as_published(cfg)
    with Bar(run, "reading", 1, quiet=True) as bar:

        def reading(title: str, done: int, total: int) -> None:
            check_stop(stop)
            bar.reading(title, done, total)

        data = read(run, cfg, reading)
    fingerprint = run.manifest.get("data", {}).get("fingerprint", data.fingerprint)
    if fingerprint != data.fingerprint:
        raise UserError(
            f"dataset={cfg.dataset.name}: the data has changed since the run was made (was {str(fingerprint)[:12]}); refused"
        )
    cfg = config.replace(cfg, **data.settled)
    context = Context(run, cfg, data, where, data.inputs(where), stop)
    changes, why = context.part("model").resolve(cfg.model, *data.shape)
    context.cfg = cfg = config.replace(cfg, **{f"model__{k}": v for k, v in changes.items()})
    check_labels(context)
    context.cfg, decided = by_rule(context)
    cfg = context.cfg
    if cfg.stage != "pretrain" and data.train.labels is not None:
        decided += imbalance(data.train.labels, data.classes)
    sizes = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    run.say(f"Data: {cfg.dataset.name}, {sizes}, {data}")
    for line in [*data.notes, *notes, *chosen, *why, *decided]:
        run.say(f"  {line}")
    if data.made:
        run.write_json("splits.json", data.made)
    if data.unreadable:
        run.write("unreadable.txt", "\n".join(data.unreadable) + "\n")
    if origin(cfg.init) == "run":
        take_parent(context)
    elif cfg.init != "random":
        take_outside(context)
    if cfg.budget:
        cfg, why = budget.size_steps(context)
        context.cfg = cfg
        for line in why:
            run.say(f"  {line}")
    run.update(data={"fingerprint": data.fingerprint, **data.facts})
    run.write("config.yaml", config.dump(cfg))
    if data.noun == "texts":
        if labelled(context):
            sets = {"train": data.train, "test": data.test}
            figures.lengths(run, {name: split.lengths.numpy() for name, split in sets.items()}, data.length)
    elif not run.path("figures/augmented.png").exists():
        strength = cfg.pretrain.augment if cfg.stage in ("all", "pretrain") else cfg.finetune.augment
        figures.contact_sheet(run, data, context.inputs, cfg.dataset.augment, strength, cfg.seed)
    return context


def read(run: Run, cfg: Config, progress: Callable[[str, int, int], None]) -> Any:
    """The data of the kind that the dataset provides."""
    if "text" in config.spec("dataset", cfg.dataset.name).provides:
        from ptmrun.data.text import load as texts  # transformers' tokenizers take a second to import

        family, problem, folder = part_of(cfg, "model"), part_of(cfg, "downstream"), source(run, cfg, TOKENIZER)
        data = texts.load(part_of(cfg, "dataset").read, cfg, family, problem, folder, progress)
        if not run.path(TOKENIZER).exists():
            data.tokenizer.save(run.path(TOKENIZER))
        return data
    return images.load(part_of(cfg, "dataset").read, cfg.dataset, int(cfg.device.workers), progress, fitting(cfg))


def as_published(cfg: Config) -> tuple[Config, list[str]]:
    """What is auto in a model that weights from outside are for, and in how images become its input, is as published instead of
    by the data; and notes."""
    if origin(cfg.init) not in OUTSIDE:
        return cfg, []
    module = part_of(cfg, "model")
    chosen = {f"model.{k}": v for k, v in getattr(module, "AS_PUBLISHED", {}).items() if getattr(cfg.model, k) == "auto"}
    if "images" in config.spec("dataset", cfg.dataset.name).provides and cfg.dataset.normalise == "auto":
        chosen["dataset.normalise"] = pretrained.normalisation(cfg.init, module)
    if hasattr(module, "SHAPE") and cfg.init != "pretrained" and (place := pretrained.place(cfg.init)).is_dir():
        described = pretrained.described(cfg.model, module, pretrained.library_config(place / "config.json"))
        chosen |= {f"model.{k}": v for k, v in described.items()}
        if getattr(cfg.model, "tokenizer", None) == "auto" and (place / "tokenizer.json").is_file():
            chosen["model.tokenizer"] = cfg.init
    notes = [f"{k}={v}: as published, for init={cfg.init} (if its weights have another, type it)" for k, v in chosen.items()]
    return config.replace(cfg, **{k.replace(".", "__"): v for k, v in chosen.items()}), notes


def fitting(cfg: Config) -> Callable[[int], int]:
    """The side of images that a model takes whose weights are there already, where not every side will do."""
    module = part_of(cfg, "model")
    return partial(module.fitting, cfg.model) if cfg.init != "random" and hasattr(module, "fitting") else int


def take_outside(context: Context) -> None:
    """Copies the published weights or the file that `init` names into the run, which needs them no more then, and notes where
    they are from. Raises UserError when they do not fit, or are not those that the run began with."""
    run, cfg, start = context.run, context.cfg, context.run.path(START)
    if not start.exists():
        encoder, module = context.encoder(), context.part("model")
        if not hasattr(encoder, "net"):
            raise UserError(f"init={cfg.init}: model={cfg.model.name} takes the weights of runs only (init=RUN)")
        if cfg.init == "pretrained":
            name, tensors, theirs = pretrained.published(encoder.net, encoder.kind, getattr(module, "PUBLISHED", {}))
        else:
            name, tensors, theirs = pretrained.read(cfg.init)
        for line in pretrained.load(encoder, tensors, theirs, name):
            run.say(f"  {line}")
        state = encoder.state_dict()
        parent = {"run": name, "weights_sha256": tensor_files.sha256(state), "data": None}
        if (before := run.manifest["parents"]) and before != [parent]:
            raise UserError(f"init={cfg.init}: its weights are not those that the run began with; refused")
        tensor_files.save(start, state)
        run.update(parents=[parent])
    elif [tensor_files.sha256(tensor_files.load(start)[0])] != [p["weights_sha256"] for p in run.manifest["parents"]]:
        raise UserError(f"{start}: its weights have changed since the run began; refused")


def take_parent(context: Context) -> None:
    """Notes the run that `init` names, and says what of its encoder is adapted to other images. Raises UserError when its
    weights or data are not what they were, or do not fit."""
    run, cfg, fingerprint, start = context.run, context.cfg, context.data.fingerprint, context.run.path(START)
    parent = parent_of(cfg, start)
    if (before := run.manifest["parents"]) and before != [parent]:
        raise UserError(f"init={cfg.init}: its weights have changed since the run began; refused")
    if parent["data"] not in (None, fingerprint):
        raise UserError(f"dataset={cfg.dataset.name}: the data has changed since {cfg.init} was made; refused")
    if not start.exists() and (tensors := unfinished(Run.open(Path(cfg.init)))):
        tensor_files.save(start, tensors)
    run.update(parents=[parent])
    if parent["data"] is None:
        for line in transferred(context):
            run.say(f"  {line}")


def transferred(context: Context) -> list[str]:
    """What is adapted in the encoder of a run on other data. Raises UserError when it does not fit these."""
    run, cfg = context.run, context.cfg
    encoder, notes = context.encoder(), []
    if folder := source(run, cfg, ENCODER):
        notes = encoder.adjusted(library_format.tensors_of(folder))[1]
    elif file := source(run, cfg, START):
        notes = encoder.adjusted(tensor_files.load(file)[0])[1]
    try:
        context.pretrained()
    except UserError as error:
        if context.data.noun != "images":
            raise UserError(f"init={cfg.init}: its encoder does not fit this data: {error}") from None
        side = config.load(Run.open(Path(cfg.init)).path("config.yaml")).dataset.image_size
        hint = f"; dataset.image_size={side} gives images the side that it was made for" if side != cfg.dataset.image_size else ""
        raise UserError(f"init={cfg.init}: its encoder does not fit images of {cfg.dataset.image_size}: {error}{hint}") from None
    if hasattr(encoder, "resize") and encoder.resize < context.data.size:
        notes.append(
            f"images are scaled down from {context.data.size} pixels a side to the model's {encoder.resize} (model.resize)"
        )
    return notes


def by_rule(context: Context) -> tuple[Config, list[str]]:
    """What is auto in the fine-tuning method, settled by the data; and notes. Raises UserError for a resolution too low."""
    cfg, data = context.cfg, context.data
    notes: list[str] = []
    if cfg.finetune.name in methods.RULES and data.train.labels is not None:
        most = max(len(data.train) if n is None else min(n * len(data.classes), len(data.train)) for n in label_counts(cfg))
        changes, notes = methods.RULES[cfg.finetune.name](cfg.finetune, most, data.size)
        cfg = config.replace(cfg, **{f"finetune__{k}": v for k, v in changes.items()})
    if isinstance(side := cfg.finetune.resolution, int):
        encoder = context.encoder().eval()
        encoder.resize = side
        try:
            with torch.no_grad():
                encoder.features(torch.zeros(1, data.channels, data.size, data.size, device=context.device))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"finetune.resolution={side}: model={cfg.model.name} cannot work at it ({reason})") from None
    return cfg, notes


def check_labels(context: Context) -> None:
    """Raises UserError, before any training, for labels that the stages to come need and the data lacks."""
    cfg, data = context.cfg, context.data
    task = config.spec("task", cfg.task.name)
    if "labels" in task.needs and cfg.stage in ("all", "pretrain") and not labelled(context):
        provided, there = config.spec("model", cfg.model.name).provides, config.choices("task")
        fits = [t for t in there if "labels" not in config.spec("task", t).needs and config.spec("task", t).requires <= provided]
        raise UserError(f"task={cfg.task.name}: needs classes, the data has none; without them there is: task={', '.join(fits)}")
    if cfg.stage == "pretrain" or (cfg.stage == "all" and not labelled(context)):
        return
    if not labelled(context):
        raise UserError(
            f"stage={cfg.stage}: needs at least two classes; the data has {len(data.classes)} (class folders give classes)"
        )
    labels = data.train.labels
    if labels is not None and labels.ndim == 1 and len(there := labels.unique()) < 2:
        one = f"all {len(labels):,} training {data.noun} are {data.classes[there[0]]}"
        raise UserError(f"stage={cfg.stage}: needs at least two classes; {one}")
    for count in label_counts(cfg):
        context.part("downstream").few(data.train, data.classes, count, cfg.seed)
