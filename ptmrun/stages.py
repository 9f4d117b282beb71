"""The stages of a run: pretrain, finetune, evaluate, and what happens around them."""

import contextlib
import errno
import importlib
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ptmrun import (
    adapt,
    budget,
    changes,
    checkpoint,
    config,
    device,
    embedding,
    figures,
    probe,
    provenance,
    report,
    reuse,
    tracking,
)
from ptmrun.config import Config
from ptmrun.context import (
    ENCODER,
    START,
    Context,
    batches_of,
    check_stop,
    chosen_stages,
    encoder_hash,
    fit,
    labelled,
    parent_of,
    source,
    steps_of,
    unfinished,
)
from ptmrun.data import splits
from ptmrun.data.batches import Normalise
from ptmrun.errors import Interrupted, UserError, printable
from ptmrun.evaluation import evaluate
from ptmrun.models import files, outside
from ptmrun.origin import origin
from ptmrun.progress import Bar
from ptmrun.run import Run, console, now
from ptmrun.signals import Stop
from ptmrun.trials import classifier, label_counts, trained_tensors, trials, tune, weights_file


def run(cfg: Config, overrides: list[str], verb: str = "", known: dict[str, Any] | None = None) -> Run:
    """A new run from the beginning; `verb` is what was typed before the overrides, `known` what its manifest must come to hold:
    the data, the weights that it starts from."""
    if origin(cfg.init) == "run":
        Run.open(Path(cfg.init))
    tracking.library(cfg.logger.name)  # what is not installed is said before there is a folder
    embedding.library(cfg.evaluate.map)
    run = Run.create(
        cfg, overrides, provenance.manifest([*verb.split(), *overrides]) | {k: v for k, v in (known or {}).items() if v}
    )
    with run.lock():
        execute(run, cfg)
    return run


def resume(run: Run, cfg: Config) -> None:
    """Goes on with a run, with what may change of its config. Raises UserError when it is done or a process works on it."""
    with run.lock():
        run.manifest = Run.open(run.folder).manifest
        if run.manifest["status"] == "done":
            raise UserError(f"{run.folder}: done already; nothing to resume (--fork starts a new run from its weights)")
        changed = changes.allowed(run, config.load(run.path("config.yaml")), cfg)
        run.say(f"Resuming {run.folder} ({run.manifest['status']})")
        for line in changed:
            run.say(f"  changed: {line}")
        run.update(status="running", resumed=[*run.manifest.get("resumed", []), now()])
        if changed:
            run.update(changed=[*run.manifest.get("changed", []), *changed])
            run.write("config.yaml", config.dump(cfg))
        execute(run, cfg)


@contextlib.contextmanager
def watched(run: Run) -> Iterator[None]:
    """Marks the run failed or interrupted when it ends early."""

    def end(status: str, why: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            run.update(status=status, error=why, ended=now())
            run.note(f"{status}: {why}")

    try:
        yield
    except Interrupted as stop:
        end("interrupted", str(stop))
        console.print(f"\nInterrupted; the state is saved. Go on with: ptmrun resume {printable(str(run.folder))}", markup=False)
        raise
    except UserError as error:
        end("failed", str(error))
        raise UserError(*error.args, f"the run so far is in {run.folder}") from None
    except OSError as error:
        end("failed", str(error))
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        hint = f"what was written before is intact; afterwards go on with: ptmrun resume {run.folder}"
        raise UserError(f"{error.filename or run.folder}: {error.strerror}; {hint}") from None
    except BaseException as error:
        end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if run.tracker:
            run.tracker.close()


def execute(run: Run, cfg: Config) -> None:
    """Runs the stages that the config asks for; each skips what it finds done."""
    stop = Stop()
    config.READ.clear()
    with watched(run), stop.handled():
        console.print(f"Run folder: {printable(str(run.folder))}", markup=False)
        context = prepare(run, cfg, stop)
        cfg = context.cfg
        tracking.start(run, cfg)
        wall: dict[str, float] = dict(run.manifest.get("wall_s", {}))
        read = set(run.manifest.get("read", []))
        stages = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate}
        chosen = chosen_stages(context)
        if not labelled(context) and cfg.stage == "all":
            run.say("The data has no classes to tell apart: only the pretraining stage runs.")
        for name in chosen:
            start = time.perf_counter()
            inputs = reuse.inputs(context, name)
            if cfg.skip_done:
                reuse.take(context, name, inputs)
            stages[name](context)
            wall[name] = round(wall.get(name, 0.0) + time.perf_counter() - start, 1)
            read |= config.READ
            run.update(wall_s=wall, inputs={**run.manifest.get("inputs", {}), name: inputs}, read=sorted(read))
        report_dead_keys(run, cfg, read)
        shutil.rmtree(run.path("checkpoints", "state"), ignore_errors=True)  # what only resuming needs
        run.manifest = {k: v for k, v in run.manifest.items() if k != "error"} | {"status": "done", "ended": now()}
        path = report.write(run)  # before the manifest says done: a run that is done is whole
        run.update()
        run.say(f"Report: {path}")


def report_dead_keys(run: Run, cfg: Config, read: set[str]) -> None:
    """Names the keys that were given and that nothing read: a warning, or with strict=true a UserError."""
    overrides = config.load_plain(run.path("overrides.yaml"))
    given = [o.lstrip("+").split("=", 1)[0] for o in overrides]
    known = config.flat(config.plain(cfg))
    dead = [key for key in dict.fromkeys(given) if "." in key and key in known and key not in read]
    lines = [f"{key}: given, but nothing in this run reads it" for key in dead]
    for line in lines:
        run.say(f"Warning: {line}")
    if lines and cfg.strict:
        raise UserError(*lines)


def prepare(run: Run, cfg: Config, stop: Stop) -> Context:
    """Device, data and model sizes; everything `auto` becomes a value, and the saved config complete."""
    cfg, where, notes = device.resolve(cfg)
    cfg, chosen = as_published(cfg)
    source_module = importlib.import_module(f"ptmrun.data.sources.{config.spec('dataset', cfg.dataset.name).module}")
    with Bar(run, "decoding", 1, quiet=True) as bar:

        def decoding(title: str, done: int, total: int) -> None:
            check_stop(stop)
            if bar.live:
                bar.live.update(bar.task, total=total, completed=done)

        data = splits.load(source_module.read, cfg.dataset, int(cfg.device.workers), decoding, fitting(cfg))
    cfg = config.replace(cfg, dataset__image_size=data.size)
    context = Context(run, cfg, data, where, Normalise(data.mean, data.std, where), stop)
    changes, why = context.part("model").resolve(cfg.model, data.size, data.channels)
    context.cfg = cfg = config.replace(cfg, **{f"model__{k}": v for k, v in changes.items()})
    check_labels(context)
    context.cfg, decided = by_rule(context)
    cfg = context.cfg
    sizes = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    channels = {1: "gray", 3: "colour"}.get(data.channels, f"{data.channels} channels")
    run.say(f"Data: {cfg.dataset.name}, {sizes}, {data.size}x{data.size} {channels}, {len(data.classes)} classes")
    for line in [*data.notes, *notes, *chosen, *why, *decided]:
        run.say(f"  {line}")
    if data.made:
        run.write_json("splits.json", data.made)
    if data.unreadable:
        run.write("unreadable.txt", "\n".join(data.unreadable) + "\n")
    fingerprint = run.manifest.get("data", {}).get("fingerprint", data.fingerprint)
    if fingerprint != data.fingerprint:
        raise UserError(
            f"dataset={cfg.dataset.name}: the data has changed since the run was made (was {str(fingerprint)[:12]}); refused"
        )
    if origin(cfg.init) == "run":
        take_parent(context)
    elif cfg.init != "random":
        take_outside(context)
    if cfg.budget:
        cfg, why = budget.size_steps(context)
        context.cfg = cfg
        for line in why:
            run.say(f"  {line}")
    run.update(data={"fingerprint": data.fingerprint, "mean": data.mean.tolist(), "std": data.std.tolist()})
    run.write("config.yaml", config.dump(cfg))
    if not run.path("figures/augmented.png").exists():
        strength = cfg.pretrain.augment if cfg.stage in ("all", "pretrain") else cfg.finetune.augment
        figures.contact_sheet(run, data, context.normalise, cfg.dataset.augment, strength, cfg.seed)
    return context


def as_published(cfg: Config) -> tuple[Config, list[str]]:
    """What is auto in a model that weights from outside are for, is as published instead of sized for the data; and notes."""
    if origin(cfg.init) not in ("pretrained", "file"):
        return cfg, []
    module = importlib.import_module(f"ptmrun.models.{config.spec('model', cfg.model.name).module}")
    chosen = {k: v for k, v in getattr(module, "AS_PUBLISHED", {}).items() if getattr(cfg.model, k) == "auto"}
    notes = [
        f"model.{k}={v}: as published, for init={cfg.init} (if its weights have another, type it)" for k, v in chosen.items()
    ]
    return config.replace(cfg, **{f"model__{k}": v for k, v in chosen.items()}), notes


def fitting(cfg: Config) -> Callable[[int], int]:
    """The side of images that a model takes whose weights are there already, where not every side will do."""
    module = importlib.import_module(f"ptmrun.models.{config.spec('model', cfg.model.name).module}")
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
            name, tensors, theirs = outside.published(encoder.net, encoder.kind, getattr(module, "PUBLISHED", {}))
        else:
            name, tensors, theirs = outside.read(cfg.init)
        for line in outside.load(encoder, tensors, theirs, name):
            run.say(f"  {line}")
        state = encoder.state_dict()
        parent = {"run": name, "weights_sha256": checkpoint.sha256(state), "data": None}
        if (before := run.manifest["parents"]) and before != [parent]:
            raise UserError(f"init={cfg.init}: its weights are not those that the run began with; refused")
        checkpoint.save(start, state)
        run.update(parents=[parent])
    elif [checkpoint.sha256(checkpoint.load(start)[0])] != [p["weights_sha256"] for p in run.manifest["parents"]]:
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
        checkpoint.save(start, tensors)
    run.update(parents=[parent])
    if parent["data"] is None:
        for line in transferred(context):
            run.say(f"  {line}")


def transferred(context: Context) -> list[str]:
    """What is adapted in the encoder of a run on other data. Raises UserError when it does not fit these."""
    run, cfg = context.run, context.cfg
    encoder, notes = context.encoder(), []
    if folder := source(run, cfg, ENCODER):
        notes = encoder.adjusted(files.tensors_of(folder))[1]
    elif file := source(run, cfg, START):
        notes = encoder.adjusted(checkpoint.load(file)[0])[1]
    try:
        context.pretrained()
    except UserError as error:
        side = config.load(Run.open(Path(cfg.init)).path("config.yaml")).dataset.image_size
        hint = f"; dataset.image_size={side} gives images the side that it was made for" if side != cfg.dataset.image_size else ""
        raise UserError(f"init={cfg.init}: its encoder does not fit images of {cfg.dataset.image_size}: {error}{hint}") from None
    if (side := getattr(encoder, "resize", context.data.size)) < context.data.size:
        notes.append(f"images are scaled down from {context.data.size} pixels a side to the model's {side} (model.resize)")
    return notes


def by_rule(context: Context) -> tuple[Config, list[str]]:
    """What is auto in the fine-tuning method, settled by the data; and notes. Raises UserError for a resolution too low."""
    cfg, data = context.cfg, context.data
    notes: list[str] = []
    if cfg.finetune.name in adapt.RULES and data.train.labels is not None:
        most = max(len(data.train) if n is None else min(n * len(data.classes), len(data.train)) for n in label_counts(cfg))
        changes, notes = adapt.RULES[cfg.finetune.name](cfg.finetune, most, data.size)
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
    for count in label_counts(cfg):
        context.part("downstream").few_labels(data.train.labels, data.classes, count, cfg.seed)


def pretrain(context: Context) -> None:
    """Trains an encoder on the training images without their labels; writes checkpoints/encoder and the objective's heads."""
    folder = context.run.path(ENCODER)
    if not folder.exists():
        objective = train_objective(context)
        heads = {k: v for k, v in objective.state_dict().items() if not k.startswith("encoder.")}
        checkpoint.save(context.run.path("checkpoints", "heads.safetensors"), heads)
        draw_pretraining(context, objective)
        objective.encoder.save(folder, context.data.mean.tolist(), context.data.std.tolist())
    context.run.update(weights_sha256=encoder_hash(folder))


def train_objective(context: Context) -> Any:
    """Trains the objective of the task, looking at the features now and then."""
    cfg, run, data = context.cfg, context.run, context.data
    objective = context.objective()
    encoder = objective.encoder
    loop, own = cfg.pretrain, adapt.parameters(encoder)
    steps, size = steps_of(loop, len(data.train)), min(loop.batch_size, len(data.train))
    run.say(
        f"Pretraining {cfg.model.name} ({own:,} parameters) with {cfg.task.name} (+ {adapt.parameters(objective) - own:,} in its "
        f"heads): {steps} steps of {size} images, {steps * size / len(data.train):.0f} epochs"
    )
    tags = {"stage": "pretrain"}

    def look(step: int) -> None:
        found = probe.probe(encoder, data.train, data.val, context.normalise, context.autocast)
        run.metric({**tags, "step": step, **found})
        run.say(f"  step {step}: {probe.describe(found)} (held-out training images)")
        before = next(x for x in run.metrics() if "effective_rank" in x)
        if alarm := probe.collapse(found, before, len(data.val)):
            remedies = getattr(objective, "remedies", "a lower pretrain.lr")
            run.say(f"  Warning: the features may be collapsing: {alarm}. To try: {remedies}")
            run.update(alarms=[*run.manifest.get("alarms", []), {"step": step, "what": alarm}])

    if loop.probes and not run.metrics():
        look(0)
    at = frozenset(round(steps * i / loop.probes) for i in range(1, loop.probes + 1))
    fit(context, objective, data.train, loop, steps, cfg.seed, tags, probe=look, probe_at=at)
    if not loop.probes and labelled(context) and hasattr(encoder, "choose"):  # else the last look has chosen the layer
        probe.probe(encoder, data.train, data.val, context.normalise, context.autocast)
    return objective


def draw_pretraining(context: Context, objective: Any) -> None:
    """Curves, what the objective makes of a few held-out images, and what the encoder attends to."""
    run, back = context.run, context.normalise.back
    held = context.data.val.spaced(8)
    loop = context.cfg.pretrain.model_copy(update={"batch_size": len(held), "accumulate": 1})
    batch = next(batches_of(context, objective, held, loop, context.cfg.seed, "figures").iterate(0, 1))[0]
    images = batch["images"]
    objective.eval()
    if "views" in batch:
        views = {f"view {i + 1}": back(x) for i, x in enumerate(batch["views"])}
        figures.rows(run, "views", {"original": back(images), **views})
    if hasattr(objective, "pictures"):
        with context.autocast():
            shown = objective.pictures(batch)
        figures.rows(run, "reconstructions", {title: back(x.float()) for title, x in shown.items()})
    if hasattr(objective.encoder, "attention"):
        figures.overlays(run, "attention", back(images), objective.encoder.attention(images), "attention\nrollout")
    figures.curves(run)
    figures.layers(run, probe.LAYER)


def finetune(context: Context) -> None:
    """Fine-tunes for every number of labels and every repeat; writes checkpoints/finetuned/."""
    cfg, run = context.cfg, context.run
    wanted = [t for labels in label_counts(cfg) for t in trials(cfg, "tuned", labels)]
    trainable, every = classifier(context, wanted[0])[1]
    run.say(f"Fine-tuning ({cfg.finetune.name}): {trainable:,} of {every:,} parameters, {cfg.finetune.seeds} repeats")
    hashes = dict(run.manifest.get("finetuned_sha256", {}))
    for trial in wanted:
        file = run.path(weights_file(trial))
        if not file.exists():
            tensors = trained_tensors(tune(context, trial))
            checkpoint.save(file, tensors)
        hashes[trial.name] = checkpoint.sha256(checkpoint.load(file)[0])
    run.update(finetuned_sha256=hashes)
