"""The stages of a run: pretrain, finetune, evaluate. The only file that knows every part."""

import contextlib
import errno
import importlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun import adapt, checkpoint, config, device, figures, probe, provenance, report, rng, train
from ptmrun import budget as budgets
from ptmrun.config import Config, Loop
from ptmrun.data import splits
from ptmrun.data.batches import Batches, Normalise
from ptmrun.data.splits import Data, Split
from ptmrun.errors import Interrupted, UserError
from ptmrun.progress import Bar
from ptmrun.run import Run, console, now
from ptmrun.signals import Stop

ENCODER = "checkpoints/encoder"


@dataclass
class Context:
    """What the stages of one run share."""

    run: Run
    cfg: Config
    data: Data
    device: torch.device
    normalise: Normalise
    stop: Stop

    def part(self, group: str) -> Any:
        """The module that the choice of a group names (the installed YAML says which, not the saved config)."""
        folder = {"model": "models", "task": "objectives", "downstream": "downstream"}[group]
        return importlib.import_module(f"ptmrun.{folder}.{config.spec(group, getattr(self.cfg, group).name).module}")

    def autocast(self) -> Any:
        return device.autocast(self.device, self.cfg.device.precision)

    def encoder(self, purpose: str = "encoder", seed: int | None = None) -> Any:
        """A new encoder with the initial weights of a seed (the run's own unless given)."""
        rng.seed_everything(self.cfg.seed if seed is None else seed, purpose)
        attention = device.attention(self.device, self.cfg.device.precision)
        encoder = self.part("model").build(self.cfg.model, self.data.size, self.data.channels, attention)
        return encoder.to(self.device)

    def pretrained(self) -> Any:
        """The encoder that fine-tuning starts from: this run's, the parent's, or a random one."""
        encoder = self.encoder()
        if folder := source(self.run, self.cfg, ENCODER):
            encoder.load(folder)
        return encoder

    def features(self, encoder: Any, split: Split) -> Any:
        return probe.features(encoder, split, self.normalise, self.autocast)


def source(run: Run, cfg: Config, name: str) -> Path | None:
    """A file or folder of this run or, when this run has not made it, of the run that `init` names, and so on."""
    for _ in range(20):
        if run.path(name).exists():
            return run.path(name)
        if cfg.init == "random":
            return None
        run = Run.open(Path(cfg.init))
        cfg = config.load(run.path("config.yaml"))
    raise UserError(f"init={cfg.init}: the chain of runs that start from one another has no end")


def run(cfg: Config, overrides: list[str], verb: str = "") -> Run:
    """A new run from the beginning; `verb` is what was typed before the overrides."""
    if cfg.init != "random":
        Run.open(Path(cfg.init))
    run = Run.create(cfg, overrides, provenance.manifest([*verb.split(), *overrides]))
    with run.lock():
        execute(run, cfg)
    return run


def resume(run: Run) -> None:
    """Goes on with a run. Raises UserError when it is done already or another process works on it."""
    cfg = config.load(run.path("config.yaml"))
    with run.lock():
        run.manifest = Run.open(run.folder).manifest
        if run.manifest["status"] == "done":
            raise UserError(f"{run.folder}: done already; nothing to resume")
        run.say(f"Resuming {run.folder} ({run.manifest['status']})")
        run.update(status="running", resumed=[*run.manifest.get("resumed", []), now()])
        execute(run, cfg)


def check_stop(stop: Stop) -> None:
    """Raises Interrupted when a signal is pending."""
    if signum := stop.pending():
        raise Interrupted(signum)


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
        console.print(f"\nInterrupted; the state is saved. Go on with: ptmrun resume {run.folder}", markup=False)
        raise
    except UserError as error:
        end("failed", str(error))
        raise UserError(*error.args, f"the run so far is in {run.folder}") from None
    except OSError as error:
        end("failed", str(error))
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        hint = f"what was written before is intact; afterwards go on with: ptmrun resume {run.folder}"
        raise UserError(f"{error.filename or run.folder}: {error.strerror}; {hint}") from None
    except BaseException as error:
        end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", f"{type(error).__name__}: {error}")
        raise


def execute(run: Run, cfg: Config) -> None:
    """Runs the stages that the config asks for; each skips what it finds done."""
    stop = Stop()
    with watched(run), stop.handled():
        console.print(f"Run folder: {run.folder}", markup=False)
        context = prepare(run, cfg, stop)
        cfg = context.cfg
        wall: dict[str, float] = dict(run.manifest.get("wall_s", {}))
        stages = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate}
        chosen = list(stages) if cfg.stage == "all" else [cfg.stage]
        if not labelled(context) and cfg.stage == "all":
            chosen = ["pretrain"]
            run.say("The data has no classes to tell apart: only the pretraining stage runs.")
        for name in chosen:
            start = time.perf_counter()
            stages[name](context)
            wall[name] = round(wall.get(name, 0.0) + time.perf_counter() - start, 1)
            run.update(wall_s=wall)
        shutil.rmtree(run.path("checkpoints", "state"), ignore_errors=True)  # what only resuming needs
        run.update(status="done", ended=now())
        path = report.write(run)
        run.say(f"Report: {path}")


def labelled(context: Context) -> bool:
    return context.data.train.labels is not None and len(context.data.classes) > 1


def prepare(run: Run, cfg: Config, stop: Stop) -> Context:
    """Device, data and model sizes; everything `auto` becomes a value, and the saved config complete."""
    cfg, where, notes = device.resolve(cfg)
    source_module = importlib.import_module(f"ptmrun.data.sources.{config.spec('dataset', cfg.dataset.name).module}")
    with Bar(run, "decoding", 1, quiet=True) as bar:

        def decoding(title: str, done: int, total: int) -> None:
            check_stop(stop)
            if bar.live:
                bar.live.update(bar.task, total=total, completed=done)

        data = splits.load(source_module.read, cfg.dataset, int(cfg.device.workers), decoding)
    cfg = config.replace(cfg, dataset__image_size=data.size)
    context = Context(run, cfg, data, where, Normalise(data.mean, data.std, where), stop)
    changes, why = context.part("model").resolve(cfg.model, data.size, data.channels)
    context.cfg = cfg = config.replace(cfg, **{f"model__{k}": v for k, v in changes.items()})
    check_labels(context)
    sizes = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    channels = {1: "gray", 3: "colour"}.get(data.channels, f"{data.channels} channels")
    run.say(f"Data: {cfg.dataset.name}, {sizes}, {data.size}x{data.size} {channels}, {len(data.classes)} classes")
    for line in [*data.notes, *notes, *why]:
        run.say(f"  {line}")
    if data.made:
        run.write_json("splits.json", data.made)
    if data.unreadable:
        run.write("unreadable.txt", "\n".join(data.unreadable) + "\n")
    fingerprint = run.manifest.get("data", {}).get("fingerprint", data.fingerprint)
    if fingerprint != data.fingerprint:
        raise UserError(
            f"dataset={cfg.dataset.name}: the data has changed since the run began (fingerprint {fingerprint[:12]}); refused"
        )
    parents = [] if cfg.init == "random" else [parent_of(cfg)]
    if (before := run.manifest.get("parents")) and before != parents:
        raise UserError(f"init={cfg.init}: its weights have changed since the run began; refused")
    if cfg.budget:
        cfg, why = budgets.size_steps(context)
        context.cfg = cfg
        for line in why:
            run.say(f"  {line}")
    run.update(data={"fingerprint": data.fingerprint, "mean": data.mean.tolist(), "std": data.std.tolist()}, parents=parents)
    run.write("config.yaml", config.dump(cfg))
    if not run.path("figures/augmented.png").exists():
        strength = cfg.pretrain.augment if cfg.stage in ("all", "pretrain") else cfg.finetune.augment
        figures.contact_sheet(run, data, context.normalise, cfg.dataset.augment, strength, cfg.seed)
    return context


def parent_of(cfg: Config) -> dict[str, Any]:
    """Name and weight hash of the run that `init` names."""
    parent = Run.open(Path(cfg.init))
    folder = source(parent, config.load(parent.path("config.yaml")), ENCODER)
    if folder is None and cfg.stage != "evaluate":  # what was fine-tuned from random weights can still be evaluated
        raise UserError(f"init={cfg.init}: that run has no {ENCODER}")
    return {"run": parent.folder.resolve().name, "weights_sha256": folder and encoder_hash(folder)}


def encoder_hash(folder: Path) -> str:
    return checkpoint.sha256(checkpoint.load(folder / "model.safetensors")[0])


def check_labels(context: Context) -> None:
    """Raises UserError, before any training, for labels that the stages to come need and the data lacks."""
    cfg, data = context.cfg, context.data
    if cfg.stage == "pretrain" or (cfg.stage == "all" and not labelled(context)):
        return
    if not labelled(context):
        raise UserError(
            f"stage={cfg.stage}: needs at least two classes; the data has {len(data.classes)} (class folders give classes)"
        )
    for count in label_counts(cfg):
        context.part("downstream").few_labels(data.train.labels, data.classes, count, cfg.seed)


def label_counts(cfg: Any) -> list[int | None]:
    counts = cfg.downstream.labels_per_class
    return counts if isinstance(counts, list) else [counts]


# ---- training ------------------------------------------------------------------------------------------------------------


def batches_of(context: Context, split: Split, loop: Any, seed: int, purpose: str) -> Batches:
    size = min(loop.batch_size, len(split))
    return Batches(
        split,
        context.normalise,
        context.cfg.dataset.augment,
        loop.augment,
        size,
        min(loop.accumulate, size),
        seed,
        purpose,
    )


def steps_of(loop: Loop, samples: int) -> int:
    if loop.steps is not None:
        return loop.steps
    assert loop.epochs is not None
    return max(1, math.ceil(loop.epochs * samples / min(loop.batch_size, samples)))


def fit(
    context: Context,
    model: Any,
    split: Split,
    loop: Any,
    steps: int,
    seed: int,
    tags: dict[str, Any],
    **extra: Any,
) -> dict[str, float]:
    """train.fit with the files, the progress bar and the random numbers of `tags` (stage, and trial for fine-tuning)."""
    run, encoder = context.run, model.encoder
    purpose = "/".join(map(str, tags.values()))
    batches = batches_of(context, split, loop, seed, purpose)

    def depth_of(name: str) -> int:
        return encoder.depth_of(name) if name.startswith("encoder.") else encoder.depth + 1

    with Bar(run, purpose, steps, quiet=tags["stage"] != "pretrain") as bar:
        plan = train.Plan(
            loop=loop,
            steps=steps,
            seed=seed,
            purpose=purpose,
            samples=len(split),
            batch_size=batches.batch_size,
            depth_of=depth_of,
            depth=encoder.depth + 1,
            autocast=context.autocast,
            file=run.path("checkpoints", "state", f"{purpose.replace('/', '_')}.safetensors"),
            metric=lambda line: run.metric({**tags, **line}),
            cut=partial(run.cut_metrics, tags),
            stop=context.stop.pending,
            show=bar.show,
            forward=torch.compile(model) if context.cfg.device.compile else None,
            **extra,
        )
        return train.fit(model, batches, plan)


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
    encoder = context.pretrained()
    rng.seed_everything(cfg.seed, "objective")
    objective = context.part("task").Objective(encoder, cfg.task).to(context.device)
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
        run.say(
            f"  step {step}: k-NN {found['probe_knn']:.3f}, linear probe {found['probe_linear']:.3f} (held-out training images)"
        )

    probes = loop.probes if labelled(context) else 0
    if probes and not run.metrics():
        look(0)
    at = frozenset(round(steps * i / probes) for i in range(1, probes + 1))
    fit(context, objective, data.train, loop, steps, cfg.seed, tags, probe=look, probe_at=at)
    return objective


def draw_pretraining(context: Context, objective: Any) -> None:
    """Curves, what the objective makes of a few held-out images, and what the encoder attends to."""
    run, held, back = context.run, context.data.val, context.normalise.back
    images = context.normalise(held.some(8))
    objective.eval()
    with context.autocast():
        shown = objective.pictures({"images": images, "rows": rng.Rows(context.cfg.seed, 0, 0, len(images), len(images))})
    figures.rows(run, "reconstructions", {title: back(x.float()) for title, x in shown.items()})
    if hasattr(objective.encoder, "attention"):
        figures.attention(run, back(images), objective.encoder.attention(images))
    figures.curves(run)


@dataclass(frozen=True)
class Trial:
    """One fine-tuning: how many labels a class, from which weights, which repeat."""

    labels: int | None
    kind: str  # tuned | scratch | scratch_long
    seed: int

    @property
    def name(self) -> str:
        return f"{self.labels or 'all'}-{self.kind}-{self.seed}"


def trials(cfg: Any, kind: str, labels: int | None) -> list[Trial]:
    return [Trial(labels, kind, 1000 * cfg.seed + i) for i in range(cfg.finetune.seeds)]


def chosen_labels(context: Context, trial: Trial) -> Split:
    train_split = context.data.train
    indices = context.part("downstream").few_labels(train_split.labels, context.data.classes, trial.labels, trial.seed)
    return train_split.subset(indices)


def classifier(context: Context, trial: Trial) -> tuple[Any, tuple[int, int]]:
    """The trial's model before training, and its (trainable, all) parameters."""
    encoder = context.pretrained() if trial.kind == "tuned" else context.encoder("scratch", trial.seed)
    rng.seed_everything(trial.seed, "head")
    module = context.part("downstream")
    model = module.Classifier(encoder, len(context.data.classes), context.cfg.finetune.label_smoothing).to(context.device)
    return model, adapt.adapt(model, context.cfg.finetune)


def tune(context: Context, trial: Trial) -> Any:
    """Trains the trial's classifier and returns it."""
    check_stop(context.stop)
    loop = context.cfg.finetune
    split = chosen_labels(context, trial)
    model, _ = classifier(context, trial)
    steps = steps_of(loop, len(split)) * (context.cfg.evaluate.longer if trial.kind == "scratch_long" else 1)
    tags = {"stage": "finetune" if trial.kind == "tuned" else "baseline", "trial": trial.name}
    if loop.head == "probe" and not context.run.path("checkpoints", "state", f"{'_'.join(tags.values())}.safetensors").exists():
        model.start_from_probe(torch.from_numpy(context.features(model.encoder, split)), split.labels)
    fit(context, model, split, loop, steps, trial.seed, tags)
    return model


def weights_file(trial: Trial) -> str:
    return f"checkpoints/finetuned/{trial.name}.safetensors"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What fine-tuning changed: trainable parameters and buffers."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {k: v for k, v in model.state_dict().items() if k not in frozen}


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


def predict(context: Context, trial: Trial) -> Tensor:
    """Logits of the test images, [N, classes]; kept in checkpoints/logits/."""
    file = context.run.path(f"checkpoints/logits/{trial.name}.safetensors")
    if not file.exists():
        if trial.kind == "tuned":
            path = source(context.run, context.cfg, weights_file(trial))
            if path is None:
                raise UserError(f"stage=evaluate: {weights_file(trial)} is missing; fine-tune first")
            model, _ = classifier(context, trial)
            tensors = {**model.state_dict(), **checkpoint.load(path)[0]}
            checkpoint.into(model, tensors, path)
        else:
            model = tune(context, trial)
        with context.autocast():
            logits = model.predict(context.normalise(images) for images in context.data.test.all())
        checkpoint.save(file, {"logits": logits})
    return checkpoint.load(file)[0]["logits"]


def evaluate(context: Context) -> None:
    """Scores the fine-tuned models on the test split beside the baselines; writes results.json, predictions and figures."""
    from ptmrun import evaluation

    evaluation.evaluate(context)
