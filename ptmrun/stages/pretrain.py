"""The pretraining stage: an encoder learns from samples without their labels."""

from typing import Any

import torch
from torch import Tensor

from ptmrun.finetuning import methods
from ptmrun.models.modes import eval_mode
from ptmrun.objectives.base import Objective
from ptmrun.reports import figures
from ptmrun.runs.lineage import ENCODER, encoder_hash, same_weights
from ptmrun.stages import compute, drawings, probe, scratch, text_samples
from ptmrun.stages.context import Context, batches_of, labelled, planned
from ptmrun.stages.pictures import draw_pretraining
from ptmrun.storage import tensor_files
from ptmrun.training import loop as training
from ptmrun.training.schedule import steps_of

HEADS, CURVES = "checkpoints/heads.safetensors", "figures/curves.png"
LONG = 1e12  # floating-point operations of a pretraining: half a minute of a core
MOST = 1024  # held-out samples that an objective is judged by


def pretrain(context: Context) -> None:
    """Trains an encoder on samples without their labels; writes checkpoints/encoder and the objective's heads, then draws."""
    run, folder, objective = context.run, context.run.path(ENCODER), None
    compute.note_pretraining(context)
    if not folder.exists():
        run.manifest.pop("weights_sha256", None)  # of weights that are gone
        with run.clock("pretrain"):
            objective = train_objective(context)
        tensor_files.save(run.path(HEADS), heads_of(objective))
        context.recompute_statistics(objective.encoder, context.data.corpus)
        objective.encoder.save(folder, *context.processor.preprocessing)
    run.update(weights_sha256=same_weights(folder, encoder_hash(folder), run.manifest.get("weights_sha256")))
    if run.path(HEADS).exists() and not run.path(CURVES).exists():
        objective = objective or saved_objective(context)
        drawings.judge(context, objective, steps_of(context.cfg.pretrain, len(context.data.corpus)))
        draw_pretraining(context, objective)
        figures.curves(run)  # the last picture, which says that there are all


def after(context: Context) -> float:
    """What follows the pretraining, in times its length: for the progress, so only where that takes longer than counting it."""
    own = context.run.manifest["compute"]["pretrain"]["flops"]
    return scratch.after_pretraining(context) / own if own > LONG else 0.0


def heads_of(objective: Objective) -> dict[str, Tensor]:
    return {k: v for k, v in objective.state_dict().items() if not k.startswith("encoder.")}


def saved_objective(context: Context) -> Objective:
    """The objective that an interrupted process has trained and saved."""
    objective, file = context.objective(), context.run.path(HEADS)
    tensor_files.into(objective, {**objective.state_dict(), **tensor_files.load(file)[0]}, file)
    return objective


def train_objective(context: Context) -> Objective:
    """Trains the objective of the task, looking at the features now and then."""
    cfg, run, data = context.cfg, context.run, context.data
    objective = context.objective()
    encoder = objective.encoder
    loop, own = cfg.pretrain, methods.parameters(encoder)
    steps, size = steps_of(loop, len(data.corpus)), min(loop.batch_size, len(data.corpus))
    run.say(
        f"Pretraining {cfg.model.name} ({own:,} parameters) with {cfg.task.name} (+ {methods.parameters(objective) - own:,} "
        f"in its heads): {steps} steps of {size} {data.noun}, {steps * size / len(data.corpus):.1f} epochs"
    )
    tags = {"stage": "pretrain"}
    own = objective.judged and data.corpus is data.train
    val, test = (data.val, data.test) if own else (data.val_corpus, data.test_corpus)

    def probe_now(step: int) -> None:
        context.recompute_statistics(encoder, data.corpus)
        values = probe.probe(encoder, data.train, data.val, context.processor, context.autocast)
        said = [f"{probe.describe(values)} (held-out training {data.noun})"]
        if val is not None:
            judged = validate(context, objective, val)
            text_samples.record(context, objective, step)
            values, said = values | judged, [describe(judged), *said]
        run.metric({**tags, "step": step, **values})
        run.say(f"  step {step}: {'; '.join(said)}")
        before = next(run.metric_lines("effective_rank"))
        signs = (probe.collapse(values, before, len(data.val)), objective.alarm())
        if alarm := ", ".join(sign for sign in signs if sign):
            run.say(f"  Warning: the features may be collapsing: {alarm}. To try: {objective.collapse_hints}")
            earlier = [a for a in run.manifest.get("alarms", []) if a["step"] < step]  # a killed process may have been further
            run.update(alarms=[*earlier, {"step": step, "what": alarm}])

    if loop.probes and not any(run.metric_lines()):
        probe_now(0)
    at = frozenset(round(steps * i / loop.probes) for i in range(1, loop.probes + 1))
    looks = {"probe": probe_now, "probe_at": at}
    with planned(context, objective, data.corpus, loop, steps, cfg.seed, tags, after=after(context), **looks) as (batches, plan):
        training.fit(objective, batches, plan)
    if not loop.probes and labelled(context) and encoder.layered:  # else the last look has chosen the layer
        probe.probe(encoder, data.train, data.val, context.processor, context.autocast)
    if val is not None and test is not None:
        means = validate(context, objective, test)
        run.metric({**tags, "step": steps, "split": "test", **means})
        run.say(f"  test split: {describe(means)}")
    return objective


@torch.no_grad()
def validate(context: Context, objective: Any, split: Any) -> dict[str, float]:
    """What the objective says of samples that it was not trained on (at most MOST, evenly spaced), with the same random numbers
    whenever it is asked: its loss as held_loss, its metrics, and what follows from these."""
    split = split.evenly_spaced(MOST)
    loop = context.data.without_augmentation(context.cfg.pretrain.model_copy(update={"accumulate": 1}))
    batches = batches_of(context, objective, split, loop, context.cfg.seed, "held")
    sums: dict[str, list[float]] = {}
    with eval_mode(objective):
        for (batch,) in batches.iterate(0, len(split) // batches.batch_size):
            with context.autocast():
                loss, others = objective(batch)
            for name, value in {"held_loss": loss, **others}.items():
                total = sums.setdefault(name, [0.0, 0.0])
                total[0] += float(value.total)
                total[1] += float(value.n)
    means = {name: total / max(n, 1.0) for name, (total, n) in sums.items()}
    return means | context.data.derived_metrics(means, split)


def describe(judged: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in judged.items())
