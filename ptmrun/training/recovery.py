"""What happens when training diverges: back to the last good state and on more gently, or a stop with the batch saved."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.batch import Samples, packed, unpacked
from ptmrun.errors import UserError
from ptmrun.rng import BatchRandom
from ptmrun.storage import tensor_files
from ptmrun.training.checkpoint import State, save
from ptmrun.training.layout import Whole
from ptmrun.training.plan import Plan

ANCHORS = 10  # how often in a fit a state may become the good one; each is a copy in memory
MOST = 5  # recoveries; the learning rate is then 1/32 of the one asked for: no longer the same recipe
EXPLODED = 100  # times the first loss (or times 1, where that was less): training that gets there has lost what it learned


def limit(state: State) -> float:
    """The loss above which training has exploded."""
    return EXPLODED * max(1.0, *state.first) if state.first else math.inf


def trouble(state: State, parameters: list[nn.Parameter], plan: "Plan") -> str:
    """Why training cannot go on as it is, or nothing."""
    if state.in_a_row >= plan.loop.max_skipped:
        what = f"loss or gradient not finite, or loss above {EXPLODED} times the first,"
        return f"{what} for {state.in_a_row} steps in a row, up to step {state.step}"
    if state.step == plan.steps and not all(bool(p.isfinite().all()) for p in parameters):
        return f"weights not finite after the last step {state.step}"
    return ""


def go_back(why: str, state: State, weights: dict[str, Tensor], micros: list[dict[str, Any]], plan: Plan, layout: Whole) -> None:
    """Writes plan.file as the last good state, to go on from in fp32 instead of bf16 or else at half the learning rate.

    That file is all there is to a recovery: a killed process that resumes from it takes the same path. Raises UserError in the
    main process, with the batch saved for `replay`, where the plan does not recover or has done so MOST times.
    """
    if not plan.recover or len(state.recoveries) == MOST:
        weights = layout.whole(weights)
        if not layout.processes.main:
            return  # to wait for the main one, which ends
        if plan.bad:
            save_batch(plan.bad, weights, micros, state, plan)
        raise stopped(why, state, micros, plan)
    change: dict[str, Any] = {"lr_scale": state.lr_scale / 2} if state.precision == "fp32" else {"precision": "fp32"}
    event = {"why": why, "to": state.good_step, **change}
    again = dataclasses.replace(
        state, step=state.good_step, in_a_row=0, window={}, recoveries=[*state.recoveries, event], good={}, **change
    )
    save(plan.file, state.good, again, plan.steps, layout)


def describe(event: dict[str, Any]) -> str:
    """One entry of the manifest's `recoveries` as a sentence."""
    how = f"with the learning rate times {event['lr_scale']:g}" if "lr_scale" in event else "in fp32 instead of bf16"
    return f"{event['purpose']}: {event['why']}; went back to step {event['to']} and on {how}"


def stopped(why: str, state: State, micros: list[dict[str, Any]], plan: "Plan") -> UserError:
    ids = torch.cat([m["ids"] for m in micros]).tolist()
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    tried = f" after {MOST} recoveries" if state.recoveries else ""
    good = tensor_files.load(plan.file)[1].get("step") if plan.file.exists() else None
    last = f"the last checkpoint is of step {good}" if good is not None else "there is no checkpoint yet"
    look = f"; to see where it begins: {plan.replay}" if plan.bad else ""
    return UserError(
        f"{plan.purpose}: {why} (samples {shown}){tried}; {last}; try a lower lr, more warmup or device.precision=fp32{look}"
    )


def save_batch(file: Path, weights: dict[str, Tensor], micros: list[dict[str, Any]], state: State, plan: "Plan") -> None:
    """Writes weights and batch of the last step, which was skipped: all that `replay` needs to run it again."""
    tensors = {f"model.{k}": v for k, v in weights.items()}
    for i, micro in enumerate(micros):
        for name, value in micro.items():
            if isinstance(value, Tensor | Samples):
                tensors |= {f"batch.{i}.{name}.{k}".rstrip("."): v.clone() for k, v in packed(value).items()}
    rows = [dataclasses.asdict(m["rows"]) if "rows" in m else None for m in micros]
    step = {"purpose": plan.purpose, "seed": plan.seed, "step": state.step - 1, "first": (state.step - 1) * plan.loop.accumulate}
    step["steps"] = plan.steps
    tensor_files.save(file, tensors, {**step, "precision": state.precision, "limit": limit(state), "rows": rows})


def load_batch(file: Path, samples: type | None) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """(weights, micro-batches, {purpose, seed, step, first, steps, precision, limit}) that `save_batch` wrote. samples: see
    data.modality.Processor."""
    tensors, state = tensor_files.load(file)
    kinds = {"purpose": str, "steps": int, "seed": int, "step": int, "first": int, "precision": str, "limit": float, "rows": list}
    try:
        if any(type(state[k]) is not kind for k, kind in kinds.items()):
            raise TypeError
        micros: list[dict[str, Any]] = [
            together(tensor_files.part(tensors, f"batch.{i}."), samples) for i in range(len(state["rows"]))
        ]
        total = sum(len(micro["ids"]) for micro in micros)
        for micro, rows in zip(micros, state["rows"], strict=True):
            if rows:
                micro["rows"] = BatchRandom(**{**rows, "total": total})
    except (KeyError, TypeError):
        raise UserError(f"{file}: not a batch that ptmrun saved; refused") from None
    return tensor_files.part(tensors, "model."), micros, state


def together(named: dict[str, Tensor], samples: type | None) -> dict[str, Any]:
    """What `save_batch` took apart, by name: tensors, and samples of those whose names have a dot."""
    values: dict[str, Any] = {name: value for name, value in named.items() if "." not in name}
    dotted = {name.split(".")[0] for name in named if "." in name}
    return values | {name: unpacked(tensor_files.part(named, f"{name}."), samples) for name in dotted}
