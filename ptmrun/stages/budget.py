"""`budget=20m`: steps of pretraining and fine-tuning that end on time, from the speed of real steps."""

import statistics
import time
from typing import Any

import torch

from ptmrun.config import parsing, schema
from ptmrun.stages.context import Context, batches_of, labelled
from ptmrun.stages.trials import Trial, chosen_labels, label_counts, new_model, trials
from ptmrun.training import optim
from ptmrun.training.loop import gradients
from ptmrun.training.schedule import steps_of

SHARE = 0.6  # of the budget for pretraining, the rest for fine-tuning and its baselines
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
    left = seconds
    if labelled(context):
        cost = wanted = 0.0
        for labels in label_counts(cfg):
            for kind, lengths in (("tuned", 1), ("scratch", scratch_lengths(cfg))):
                trial = trials(cfg, kind, labels)[0]
                split = chosen_labels(context, trial)
                each = cfg.finetune.seeds * lengths * trial_step(context, trial, split) if lengths else 0.0
                cost += each
                wanted += each * steps_of(cfg.finetune, len(split))
        if wanted > (1 - SHARE) * seconds:
            changes |= {"finetune__steps": max(1, int((1 - SHARE) * seconds / cost)), "finetune__epochs": None}
            wanted = (1 - SHARE) * seconds
        left -= wanted
    changes |= {"pretrain__steps": max(1, int(left / pretrain)), "pretrain__epochs": None}
    notes = [f"{k.replace('__', '.')}={v}: for budget={cfg.budget}" for k, v in changes.items() if k.endswith("steps")]
    context.run.update(budget={"asked": cfg.budget, "pretrain_step_s": pretrain})
    return parsing.replace(cfg, **changes), notes


def trial_step(context: Context, trial: Trial, split: Any) -> float:
    """Seconds of a step of fine-tuning."""
    model, _ = new_model(context, trial)
    batches = batches_of(context, model, split, context.cfg.finetune, context.cfg.seed, "budget")
    return seconds_per_step(context, model, batches, context.cfg.finetune)


def scratch_lengths(cfg: schema.Config) -> int:
    """How many times the steps of fine-tuning the baselines from scratch take."""
    lengths = {"scratch": 1, "scratch_long": cfg.evaluate.longer}
    return sum(n for kind, n in lengths.items() if kind in cfg.evaluate.baselines)


def seconds_per_step(context: Context, model: torch.nn.Module, batches: Any, loop: Any, steps: int = 6) -> float:
    """The median time of real steps of a model that is thrown away, data included; the first ones warm up. Three slow ones do.

    On a CPU it is the time that this thread computes: what else the machine does now makes a run longer, but does not change it.
    """
    here = context.device.type == "cpu" and context.cfg.device.workers == 0
    clock = time.thread_time if here else time.perf_counter
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
