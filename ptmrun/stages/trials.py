"""Trials of fine-tuning: for a number of labels, from which weights, which repeat."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.data.sources.folders import nfc
from ptmrun.downstream.base import Model
from ptmrun.errors import UserError
from ptmrun.finetuning import linear, methods
from ptmrun.models import batchnorm
from ptmrun.models.base import Encoder
from ptmrun.models.modes import has_dropout
from ptmrun.runs.lineage import source, weights_hash
from ptmrun.stages.context import Context, planned
from ptmrun.stages.networks import Networks, problem_of
from ptmrun.storage import tensor_files
from ptmrun.training import loop as training
from ptmrun.training.schedule import layer_decay_of, steps_of
from ptmrun.training.signals import check_stop

DROPPED = 8  # times that a few samples are seen with other units dropped
ENOUGH = 4000  # samples that are plenty without
UNKNOWN_STEPS = 2**31  # of what an older version trained; they matter to ranks that are allocated while training
CLASS_ROWS = re.compile(r"((auxiliary_)?head\.(weight|bias))|weights")  # tensors of a fine-tuned model that have a row a class
MOST_NAMES = 5
FROZEN = ("frozen", "random_frozen")  # kinds of trials that leave the encoder as it is
JUDGES = 1000  # samples that say whether training made a classifier better


@dataclass(frozen=True)
class Trial:
    """One fine-tuning: how many labels per class, from which weights, which repeat."""

    labels: int | None
    kind: str  # tuned | scratch; where a problem has `frozen_heads`: frozen | random_frozen
    seed: int

    @property
    def name(self) -> str:
        return f"{self.labels or 'all'}-{self.kind}-{self.seed}"


def trials(cfg: Any, kind: str, labels: int | None) -> list[Trial]:
    repeats = cfg.finetune.seeds if problem_of(cfg).trains else 1
    return [Trial(labels, kind, 1000 * cfg.seed + i) for i in range(repeats)]


def best_trial(cfg: Any) -> Trial:
    """The first repeat with most labels, which stands for the run."""
    return trials(cfg, "tuned", label_counts(cfg)[-1])[0]


def chosen_labels(context: Context, trial: Trial) -> Any:
    train_split = context.data.train
    indices = context.problem.subset(train_split, context.classes, trial.labels, trial.seed)
    return train_split.subset(indices)


def finetune_settings(cfg: Any, trial: Trial, samples: int) -> Any:
    """The settings of `finetune` for a trial with so many samples: random weights are all trained, at one rate, whatever the
    method, and have no statistics to keep."""
    options = cfg.finetune
    if trial.kind in FROZEN:
        return options.model_copy(update={"name": "linear", "freeze": None, "unfreeze": None, "layer_decay": 1.0})
    if trial.kind != "tuned":
        every = {"name": "full", "freeze": None, "unfreeze": None, "layer_decay": 1.0, "statistics": "batch"}
        return options.model_copy(update={**every, "lr": options.scratch_lr or options.lr})
    return options.model_copy(update={"layer_decay": layer_decay_of(options, samples)})


def new_model(context: Context, trial: Trial) -> tuple[Model, tuple[int, int]]:
    """The trial's model before training, and its (trainable, all) parameters."""
    split = chosen_labels(context, trial)
    options = finetune_settings(context.cfg, trial, len(split))
    return build_model(context, trial, options, trial_steps(context.cfg, trial, len(split)), split.weighed)


def build_model(
    networks: Networks, trial: Trial, options: Any, steps: int, labels: Tensor | None
) -> tuple[Model, tuple[int, int]]:
    """The same from the options of `finetune`, the steps that it is trained for and its labels; without these, weights of classes
    are those that are loaded later."""
    encoder = networks.starting_encoder() if trial.kind in ("tuned", "frozen") else networks.encoder("scratch", trial.seed)
    if drops_pretraining_parts(networks, encoder):
        encoder.trim()
    rng.seed_everything(trial.seed, "head")
    networks.processor.configure(encoder, options)
    if options.statistics == "kept":
        batchnorm.freeze_statistics(encoder)
    model = networks.problem.build(encoder, networks.problem_setup, options).to(networks.device)
    if options.class_weights == "balanced":
        model.balance_classes(labels)
    counts = methods.adapt(model, options, steps)
    return model.train(), counts


def trial_steps(cfg: Any, trial: Trial, samples: int) -> int:
    """Optimizer steps of the trial with so many samples."""
    return steps_of(cfg.finetune, samples)


def features_once(model: Model, loop: Any) -> bool:
    """Whether a linear classifier is all that is trained, so that features are computed once."""
    return loop.name == "linear" and model.linear_probe and not loop.unfreeze


def probed(model: Model, loop: Any) -> bool:
    """Whether the classifier starts from a linear probe of the features."""
    return loop.head == "probe" and model.linear_probe


def drops_pretraining_parts(networks: Networks, encoder: Encoder) -> bool:
    """Whether fine-tuning leaves out what only pretraining needs."""
    return encoder.trims and not networks.problem.whole_encoder


def tune(context: Context, trial: Trial) -> Any:
    """Trains the trial's fine-tuned model and returns it."""
    check_stop(context.stop)
    split = chosen_labels(context, trial)
    loop, steps = finetune_settings(context.cfg, trial, len(split)), trial_steps(context.cfg, trial, len(split))
    model, _ = new_model(context, trial)
    tags = {"stage": "finetune", "trial": trial.name}
    context.recompute_statistics(model.encoder, split)
    if features_once(model, loop):
        linear.fit(context, model, split, steps, trial.seed, tags)
        return model
    if probed(model, loop):
        start_from_probe(context, model, split, trial.seed)
    judged = loop.keep_probe and probed(model, loop)
    if judged:
        start, before = {k: v.to("cpu", copy=True) for k, v in methods.trained(model).items()}, validation_score(context, model)
    with planned(context, model, split, loop, steps, trial.seed, tags, trial) as (batches, plan):
        training.fit(model, batches, plan)
    context.recompute_statistics(model.encoder, split)
    if judged:
        after = validation_score(context, model)
        context.run.metric({**tags, "step": steps, "probe_val_score": before, "val_score": after})
        if before - after > math.sqrt(before * (1 - before) / min(JUDGES, len(context.data.val))):  # a standard error
            model.load_state_dict(start, strict=False)
            why = f"{before:.3f} on held-out {context.data.noun}, {after:.3f} after training (finetune.keep_probe)"
            context.run.say(f"  {trial.name}: the linear probe that it began with is kept: {why}")
    return model


def start_from_probe(context: Context, model: Any, split: Any, seed: int) -> None:
    model.init_head_from_probe(dropped_features(context, model.encoder, split, seed), split.labels)


def validation_score(context: Context, model: Any) -> float:
    """The score on samples of the validation split, of which a thousand tell enough."""
    val = context.data.val.evenly_spaced(JUDGES)
    with context.autocast():
        return context.problem.score(predict_split(context, model, val), val)


def predict_split(context: Networks, model: Any, samples: Any) -> dict[str, Tensor]:
    """What a model predicts of all samples, in their order."""
    samples, place = samples.sorted_by_length()
    return {name: rows[place] for name, rows in model.predict(context.processor(batch) for batch in samples.all()).items()}


def dropped_features(context: Context, encoder: Encoder, split: Any, seed: int) -> Tensor:
    """Features as training will see them, [N, D], or where the encoder drops units several times over, [times * N, D]: a probe
    that had not seen dropout would rest on differences much smaller than it makes."""
    times, dropout = looks(encoder, split), any(map(has_dropout, encoder.modules()))
    if dropout:
        rng.seed_everything(seed, "probe/dropout")
    return torch.cat([torch.from_numpy(context.features(encoder, split, dropout=dropout)) for _ in range(times)])


def looks(encoder: Encoder, split: Any) -> int:
    """How many times a probe sees the features of a split: more than once where they vary by dropout."""
    return max(1, min(DROPPED, ENOUGH // len(split))) if any(map(has_dropout, encoder.modules())) else 1


def labelled_batches(context: Context, split: Any, size: int = 64) -> Iterator[dict[str, Any]]:
    """The whole split in order, in batches as in training: inputs and labels."""
    lists = torch.arange(len(split)).split(size)
    for indices, samples in zip(lists, split.batches(lists), strict=True):
        yield {"inputs": context.processor(samples), "labels": split.answers(indices).to(context.device)}


def weights_file(trial: Trial) -> str:
    return f"checkpoints/finetuned/{trial.name}.safetensors"


def label_counts(cfg: Any) -> list[int | None]:
    """How many labels to fine-tune with, one setting after the other, the fewest first."""
    counts = cfg.downstream.labels_per_class
    return sorted(set(counts), key=lambda n: n or math.inf) if isinstance(counts, list) else [counts]


def save_finetuned(context: Context, trial: Trial, model: Model, relative: bool) -> None:
    """Writes what was trained, `relative` to frozen weights or not, with all that is needed to use it without the data."""
    split = chosen_labels(context, trial)
    state = {"classes": context.classes, "steps": trial_steps(context.cfg, trial, len(split))}
    state |= {"relative_to": weights_hash(context.run)} if relative else {}
    tensor_files.save(context.run.path(weights_file(trial)), methods.trained(model), state)


def load_finetuned(networks: Networks, trial: Trial) -> Model:
    """The model that the fine-tuning stage trained; where it trains nothing, the pretrained one. Raises UserError when it did
    not."""
    if not networks.problem.trains:
        return build_model(networks, trial, finetune_settings(networks.cfg, trial, 1), 1, None)[0]
    path = source(networks.run, networks.cfg, weights_file(trial))
    if path is None:
        raise UserError(f"stage=evaluate: {weights_file(trial)} is missing; fine-tune first")
    (tensors, state), classes = tensor_files.load(path), networks.classes
    steps = state.get("steps", UNKNOWN_STEPS)
    if type(steps) is not int or not 0 < steps <= UNKNOWN_STEPS:
        raise UserError(f"{path}: its header is not what ptmrun writes there; refused")
    model, _ = build_model(networks, trial, finetune_settings(networks.cfg, trial, 1), steps, None)
    if state.get("relative_to") not in (None, weights_hash(networks.run)):
        raise UserError(f"{path}: holds what was trained beside other frozen weights than this run's; refused")
    if classes and tensors.get("head.bias") is not None:
        tensors = matched(tensors, state.get("classes", []), networks, path)
    tensor_files.into(model, {**model.state_dict(), **model.encoder.adjusted(tensors)[0]}, path)
    return model


def matched(tensors: dict[str, Tensor], names: Any, networks: Networks, path: Path) -> dict[str, Tensor]:
    """The tensors of a classifier whose rows stand for the classes of these names, in the order of the data's own; says so where
    it drops or moves some. Raises UserError where the data has a class that is not among them."""
    wanted, rows = networks.classes, len(tensors["head.bias"])
    names = [nfc(str(name)) for name in names] if isinstance(names, list) else []
    if names == wanted or (not names and rows == len(wanted)):  # older versions saved no names
        return tensors
    if len(names) != rows:
        raise UserError(f"{path}: its classifier tells {rows} classes apart, the data has {len(wanted)}: stage=finetune first")
    if lacking := [name for name in wanted if name not in names]:
        known = ", ".join(map(str, names[:MOST_NAMES])) + (", ..." if rows > MOST_NAMES else "")
        raise UserError(f"{path}: was trained to tell {known} apart; the data has the class {lacking[0]}: stage=finetune first")
    what = f"the data's {len(wanted)} classes of the {rows} that it was trained on"
    networks.run.say(f"  {path.name}: matched by name: {what}")
    order = torch.tensor([names.index(name) for name in wanted])
    return {name: value[order] if CLASS_ROWS.fullmatch(name) else value for name, value in tensors.items()}


def predict(context: Context, trial: Trial, split: str = "test") -> dict[str, Tensor]:
    """What the trial's fine-tuned model predicts of the test or val split, see `saved_predictions`."""
    name = f"{trial.name}{'' if split == 'test' else '-' + split}"
    return saved_predictions(context, name, getattr(context.data, split), lambda: (load_finetuned(context, trial), {}))[0]


def saved_predictions(
    context: Context, name: str, samples: Any, make: Callable[[], tuple[Model, dict[str, Any]]]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a model predicts of samples, as its problem has it, and what goes with it: from checkpoints/logits/, where they are
    stored after the model was made."""
    file = context.run.path(f"checkpoints/logits/{name}.safetensors")
    if not file.exists():
        model, state = make()
        with context.autocast():
            predictions = predict_split(context, model, samples)
            predictions |= model.reference_nll(labelled_batches(context, samples))
        tensor_files.save(file, predictions, state)
    predictions, state = tensor_files.load(file)
    known = context.problem.valid(predictions, samples, context.classes)
    if not known or not all(map(tensor_files.finite, predictions.values())):
        raise UserError(f"{file}: not finite predictions for these {len(samples)} samples and their classes; refused")
    return predictions, state
