"""`budget=20m`: steps of pretraining and fine-tuning that end on time, from the speed of real steps."""

import contextlib
import statistics
import time
from typing import Any

from ptmrun.config import parsing, schema
from ptmrun.stages import compute, scratch, side_by_side
from ptmrun.stages.context import Context, batches_of, finetunes
from ptmrun.stages.trials import Trial, chosen_labels, label_counts, new_model, trials
from ptmrun.training import optim
from ptmrun.training.loop import gradients
from ptmrun.training.schedule import steps_of

SHARE = 0.6  # of the budget at least for pretraining and as much compute from scratch, the rest for fine-tuning and as much
SLOW = 3.0  # seconds of steps that are enough to measure
USABLE = 0.92  # of the budget for steps; probes, predictions and figures take the rest


def size_steps(context: Context) -> tuple[schema.Config, list[str]]:
    """The config with steps instead of the budget, and notes on how they came about."""
    cfg, data = context.cfg, context.data
    assert cfg.budget is not None
    seconds = USABLE * parse_budget(cfg.budget)
    objective = context.objective()
    batches = batches_of(context, objective, data.corpus, cfg.pretrain, cfg.seed, "budget")
    pretrain = seconds_per_step(context, objective, batches, cfg.pretrain)
    changes: dict[str, Any] = {"budget": None}
    compared = finetunes(context) and "scratch" in cfg.evaluate.baselines
    speeds = {labels: scratch_speed(context, labels) for labels in label_counts(cfg)} if compared else {}
    each = pretrain + (scratch_share(context, sum(speeds.values())) if compared else 0.0)
    left = seconds
    if finetunes(context):
        costs = [(finetuning_step(context, n, speeds.get(n)), trial_length(context, n)) for n in label_counts(cfg)]
        wanted = sum(cost * steps for cost, steps in costs)
        if wanted > (1 - SHARE) * seconds:
            wanted = (1 - SHARE) * seconds
            changes |= {"finetune__steps": max(1, int(wanted / sum(cost for cost, _ in costs))), "finetune__epochs": None}
        left -= wanted
    if compared and cfg.evaluate.scratch_repeats == "auto":
        changes["evaluate__scratch_repeats"] = 1
    changes |= {"pretrain__steps": max(1, int(left / each)), "pretrain__epochs": None}
    notes = [f"{k.replace('__', '.')}={v}: for budget={cfg.budget}" for k, v in changes.items() if k.endswith("steps")]
    context.run.update(budget={"asked": cfg.budget, "pretrain_step_s": pretrain})
    return parsing.replace(cfg, **changes), notes


def trial_length(context: Context, labels: int | None) -> int:
    """Steps of fine-tuning."""
    return steps_of(context.cfg.finetune, len(chosen_labels(context, trials(context.cfg, "tuned", labels)[0])))


def finetuning_step(context: Context, labels: int | None, speed: float | None) -> float:
    """Seconds of a step of fine-tuning in all repeats and, where they are compared, of as much compute from scratch at this
    speed."""
    cfg = context.cfg
    trial = trials(cfg, "tuned", labels)[0]
    seconds = cfg.finetune.seeds * trial_step(context, trial, chosen_labels(context, trial))
    if speed is not None:
        fit = compute.fine_tuning(context, trial)
        times = scratch.DECAY + scratch.BRANCHED * (
            1 if context.run.manifest["compute"]["before"] is not None else scratch.UNKNOWN
        )
        seconds += times * scratch_repeats(cfg) * fit.flops / fit.steps * speed
    return seconds


def scratch_share(context: Context, speed: float) -> float:
    """Seconds that training from scratch takes for the compute of a step of pretraining; the speeds of all numbers of labels
    together."""
    fit = compute.pretraining(context)
    return scratch.BRANCHED * scratch_repeats(context.cfg) * fit.flops / fit.steps * speed


def scratch_speed(context: Context, labels: int | None) -> float:
    """Seconds of a floating-point operation of training from scratch."""
    trial = trials(context.cfg, "scratch", labels)[0]
    return trial_step(context, trial, chosen_labels(context, trial)) / scratch.step_of(context, labels)[0]


def scratch_repeats(cfg: schema.Config) -> int:
    """With a budget, auto is one."""
    return 1 if cfg.evaluate.scratch_repeats == "auto" else min(cfg.evaluate.scratch_repeats, cfg.finetune.seeds)


def trial_step(context: Context, trial: Trial, split: Any) -> float:
    """Seconds of a step of fine-tuning, or from scratch: a share where other trials take theirs at the same time."""
    cfg = context.cfg
    model, (_, parameters) = new_model(context, trial)
    batches = batches_of(context, model, split, cfg.finetune, cfg.seed, "budget")
    repeats = cfg.finetune.seeds if trial.kind == "tuned" else scratch_repeats(cfg)
    together = side_by_side.at_once(context, parameters, repeats * len(label_counts(cfg)))
    with side_by_side.one_thread(context) if together > 1 else contextlib.nullcontext():
        return seconds_per_step(context, model, batches, cfg.finetune) / together


def seconds_per_step(context: Context, model: Any, batches: Any, loop: Any, steps: int = 6) -> float:
    """The median time of real steps of a model that is thrown away, data included; the first ones warm up. Three slow ones do.

    On a CPU it is the time that this thread computes: what else the machine does now makes a run longer, but does not change it.
    """
    here = context.device.type == "cpu" and context.cfg.device.workers == 0
    clock = time.thread_time if here else time.perf_counter
    model.begin_at(1)  # where the last steps differ, they are more and take longer
    optimizer = optim.build([{"params": [p for p in model.parameters() if p.requires_grad]}], loop)
    times = []
    begun = clock()
    for micros in batches.iterate(0, steps):
        gradients(model, model, micros, lambda _: context.autocast())
        optimizer.step()
        optimizer.zero_grad()
        times.append(clock() - begun)
        begun = clock()
        if len(times) >= 3 and sum(times) > SLOW:
            break
    return statistics.median(times[2:])


def parse_budget(text: str) -> float:
    """`20m` -> seconds"""
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]
