"""The fine-tuning stage: a model for every number of labels and every repeat."""

from functools import partial
from typing import Any

from ptmrun.config import schema
from ptmrun.config.init_source import OUTSIDE, origin
from ptmrun.models import batchnorm
from ptmrun.runs.lineage import hash_of, same_weights
from ptmrun.stages import novelty, side_by_side
from ptmrun.stages.context import Context, place_of
from ptmrun.stages.trials import (
    Trial,
    best_trial,
    chosen_labels,
    label_counts,
    new_model,
    save_finetuned,
    trial_steps,
    trials,
    tune,
    weights_file,
)
from ptmrun.training import optim
from ptmrun.training.schedule import LEAST, PASSES, layer_decay_of, steps_of

MOST = 12  # classes whose weights are told


def recipe(context: Context, model: Any) -> list[str]:
    """How long and how gently the stage fine-tunes, where that was left to ptmrun, and why."""
    cfg, loop, lines = context.cfg, context.cfg.finetune, []
    counts = [len(chosen_labels(context, trials(cfg, "tuned", n)[0])) for n in label_counts(cfg)]
    many = [f"{n:,}" for n in counts if loop.layer_decay == "auto" and layer_decay_of(loop, n) == 1]
    if many:
        told = f"{', '.join(many)} {context.data.noun}"
        lines.append(f"finetune.layer_decay=1 with {told}: enough for all blocks (with fewer {schema.LAYER_DECAY})")
    if loop.steps == "auto":
        told = ", ".join(f"{steps_of(loop, n):,} with {n:,} {context.data.noun}" for n in counts)
        lines.append(f"finetune.steps=auto: {told}: {PASSES} passes, at least {LEAST} steps")
    if (weights := getattr(model, "weights", None)) is not None:
        each = [f"{name} {weight:.3g}" for name, weight in zip(context.classes, weights.tolist(), strict=True)]
        lines.append(f"finetune.class_weights=balanced: {', '.join(each[:MOST])}" + (", ..." if len(each) > MOST else ""))
    if origin(cfg.init) in OUTSIDE and loop.lr == loop.published_lr and loop.name != "linear":
        lines.append(f"finetune.lr={loop.lr:g}: for weights that were trained for long (finetune.published_lr)")
    if origin(cfg.init) in OUTSIDE and any(map(batchnorm.has_frozen_statistics, model.modules())):
        lines.append("finetune.statistics=kept: batch normalisation's, of weights from outside: they saw more images")
    return lines


def finetune(context: Context) -> None:
    """Fine-tunes for every number of labels and every repeat; writes checkpoints/finetuned/."""
    cfg, run = context.cfg, context.run
    wanted = [t for labels in label_counts(cfg) for t in trials(cfg, "tuned", labels)]
    model, (trainable, every) = new_model(context, wanted[0])
    share, moments = (
        f"{trainable:,} of {every:,} parameters ({100 * trainable / every:.3g}%)",
        optim.memory(trainable, cfg.finetune) / 1e6,
    )
    repeats = f"{cfg.finetune.seeds} repeat{'s' if cfg.finetune.seeds > 1 else ''}"
    run.say(f"Fine-tuning ({cfg.finetune.name}): {share}, {moments:,.1f} MB of optimizer state, {repeats}")
    for line in recipe(context, model):
        run.say(f"  {line}")
    del model  # its memory is for the trials
    hashes = dict(run.manifest.get("finetuned_sha256", {}))

    def train(trial: Trial) -> None:
        with context.run.clock(f"finetune/{trial.name}"):
            model = tune(context, trial)
        save_finetuned(context, trial, model, relative=trainable < every)

    missing = [trial for trial in wanted if not run.path(weights_file(trial)).exists()]
    if len(missing) > 1 and side_by_side.possible(context, every):
        steps = sum(trial_steps(cfg, trial, len(chosen_labels(context, trial))) for trial in missing)
        side_by_side.train(
            context, f"{place_of(context, 'finetune')}finetune", [partial(train, trial) for trial in missing], steps
        )
    for trial in wanted:
        file = run.path(weights_file(trial))
        if not file.exists():
            train(trial)
            hashes.pop(trial.name, None)  # of weights that are gone
        hashes[trial.name] = same_weights(file, hash_of(file), hashes.get(trial.name))
    run.update(finetuned_sha256=hashes)
    novelty.save(context, best_trial(cfg))
