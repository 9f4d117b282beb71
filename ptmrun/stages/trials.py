"""Trials of fine-tuning: for a number of labels, from which weights, which repeat."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.errors import UserError
from ptmrun.finetuning import linear, methods
from ptmrun.models import batchnorm
from ptmrun.models.modes import drops
from ptmrun.stages.context import Context, check_stop, fit, layer_decay_of, source, steps_of, weights_hash
from ptmrun.storage import tensor_files

DROPPED = 8  # times that a few samples are seen with other units dropped


ENOUGH = 4000  # samples that are plenty without


JUDGES = 1000  # samples that say whether training made a classifier better


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


def chosen_labels(context: Context, trial: Trial) -> Any:
    train_split = context.data.train
    indices = context.part("downstream").few(train_split, context.data.classes, trial.labels, trial.seed)
    return train_split.subset(indices)


def settings(cfg: Any, trial: Trial, samples: int) -> Any:
    """The settings of `finetune` for a trial with so many samples: random weights are all trained, at one rate, whatever the
    method, and have no statistics to keep."""
    options = cfg.finetune
    if trial.kind != "tuned":
        every = {"name": "full", "freeze": None, "unfreeze": None, "layer_decay": 1.0, "statistics": "batch"}
        return options.model_copy(update={**every, "lr": options.scratch_lr or options.lr})
    return options.model_copy(update={"layer_decay": layer_decay_of(options, samples)})


def classifier(context: Context, trial: Trial) -> tuple[Any, tuple[int, int]]:
    """The trial's model before training, and its (trainable, all) parameters."""
    encoder = context.pretrained() if trial.kind == "tuned" else context.encoder("scratch", trial.seed)
    problem = context.part("downstream")
    if trims(context, encoder):
        encoder.trim()
    rng.seed_everything(trial.seed, "head")
    split = chosen_labels(context, trial)
    options = settings(context.cfg, trial, len(split))
    if options.resolution is not None:
        encoder.resize = options.resolution
    if options.statistics == "kept":
        batchnorm.keep(encoder)
    model = problem.build(encoder, context.data, options).to(context.device)
    if hasattr(model, "balance") and options.class_weights == "balanced":
        model.balance(split.labels)
    counts = methods.adapt(model, options, trial_steps(context.cfg, trial, len(split)))
    return model.train(), counts


def trial_steps(cfg: Any, trial: Trial, samples: int) -> int:
    """Optimizer steps of the trial with so many samples."""
    return (cfg.evaluate.longer if trial.kind == "scratch_long" else 1) * steps_of(cfg.finetune, samples)


def trims(context: Context, encoder: Any) -> bool:
    """Whether fine-tuning leaves out what only pretraining needs."""
    return hasattr(encoder, "trim") and not getattr(context.part("downstream"), "WHOLE", False)


def tune(context: Context, trial: Trial) -> Any:
    """Trains the trial's classifier and returns it."""
    check_stop(context.stop)
    split = chosen_labels(context, trial)
    loop, steps = settings(context.cfg, trial, len(split)), trial_steps(context.cfg, trial, len(split))
    model, _ = classifier(context, trial)
    tags = {"stage": "finetune" if trial.kind == "tuned" else "baseline", "trial": trial.name}
    context.refresh(model.encoder, split)
    if loop.name == "linear" and hasattr(model, "take") and not loop.unfreeze:
        linear.fit(context, model, split, steps, trial.seed, tags)
        return model
    probed = loop.head == "probe" and hasattr(model, "start_from_probe")
    if probed:
        start_from_probe(context, model, split, trial.seed)
    judged = loop.keep_probe and probed
    if judged:
        start, before = {k: v.to("cpu", copy=True) for k, v in methods.trained(model).items()}, held_out(context, model)
    fit(context, model, split, loop, steps, trial.seed, tags)
    context.refresh(model.encoder, split)
    if judged:
        after = held_out(context, model)
        context.run.metric({**tags, "step": steps, "probe_val_score": before, "val_score": after})
        if before - after > math.sqrt(before * (1 - before) / min(JUDGES, len(context.data.val))):  # a standard error
            model.load_state_dict(start, strict=False)
            why = f"{before:.3f} on held-out {context.data.noun}, {after:.3f} after training (finetune.keep_probe)"
            context.run.say(f"  {trial.name}: the linear probe that it began with is kept: {why}")
    return model


def start_from_probe(context: Context, model: Any, split: Any, seed: int) -> None:
    model.start_from_probe(dropped_features(context, model.encoder, split, seed), split.labels)


def held_out(context: Context, model: Any) -> float:
    """The score on samples of the validation split, of which a thousand tell enough."""
    val = context.data.val.spaced(JUDGES)
    with context.autocast():
        return context.part("downstream").score(said(context, model, val), val)


def said(context: Context, model: Any, samples: Any) -> dict[str, Tensor]:
    """What a model predicts of all samples, in their order."""
    samples, place = samples.by_length()
    return {name: rows[place] for name, rows in model.predict(context.inputs(batch) for batch in samples.all()).items()}


def dropped_features(context: Context, encoder: Any, split: Any, seed: int) -> Tensor:
    """Features as training will see them, [N, D], or where the encoder drops units several times over, [times * N, D]: a probe
    that had not seen dropout would rest on differences much smaller than it makes."""
    if not any(map(drops, encoder.modules())):
        return torch.from_numpy(context.features(encoder, split))
    rng.seed_everything(seed, "probe/dropout")
    times = max(1, min(DROPPED, ENOUGH // len(split)))
    return torch.cat([torch.from_numpy(context.features(encoder, split, dropout=True)) for _ in range(times)])


def answered(context: Context, split: Any, size: int = 64) -> Iterator[dict[str, Any]]:
    """The whole split in order, in batches as in training: inputs and labels."""
    lists = torch.arange(len(split)).split(size)
    for indices, samples in zip(lists, split.batches(lists), strict=True):
        yield {"inputs": context.inputs(samples), "labels": split.answers(indices).to(context.device)}


def weights_file(trial: Trial) -> str:
    return f"checkpoints/finetuned/{trial.name}.safetensors"


def label_counts(cfg: Any) -> list[int | None]:
    """How many labels to fine-tune with, one setting after the other, the fewest first."""
    counts = cfg.downstream.labels_per_class
    return sorted(set(counts), key=lambda n: n or math.inf) if isinstance(counts, list) else [counts]


def tuned(context: Context, trial: Trial) -> Any:
    """The classifier that the fine-tuning stage trained. Raises UserError when it did not."""
    path = source(context.run, context.cfg, weights_file(trial))
    if path is None:
        raise UserError(f"stage=evaluate: {weights_file(trial)} is missing; fine-tune first")
    model, _ = classifier(context, trial)
    (tensors, state), classes = tensor_files.load(path), len(context.data.classes)
    if state.get("relative_to") not in (None, weights_hash(context.run)):
        raise UserError(f"{path}: holds what was trained beside other frozen weights than this run's; refused")
    if classes and (bias := tensors.get("head.bias")) is not None and len(bias) != classes:
        raise UserError(f"{path}: its classifier tells {len(bias)} classes apart, the data has {classes}: stage=finetune first")
    tensor_files.into(model, {**model.state_dict(), **model.encoder.adjusted(tensors)[0]}, path)
    return model


def predict(context: Context, trial: Trial, split: str = "test") -> dict[str, Tensor]:
    """What the trial's model says of the test or val split, as its problem has it; kept in checkpoints/logits/."""
    file = context.run.path(f"checkpoints/logits/{trial.name}{'' if split == 'test' else '-' + split}.safetensors")
    samples = getattr(context.data, split)
    if not file.exists():
        model = tuned(context, trial) if trial.kind == "tuned" else tune(context, trial)
        with context.autocast():
            found = said(context, model, samples)
            if hasattr(model, "costs"):  # of the right answers, which the predictions do not tell
                found |= model.costs(answered(context, samples))
        tensor_files.save(file, found)
    found = tensor_files.load(file)[0]
    known = context.part("downstream").fits(found, samples, context.data.classes)
    if not known or not all(map(tensor_files.finite, found.values())):
        raise UserError(f"{file}: not finite predictions for these {len(samples)} samples and their classes; refused")
    return found
