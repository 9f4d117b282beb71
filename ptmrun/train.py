"""The loop. It knows tensors, steps and files; it knows no model, objective, data set or stage."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ptmrun import checkpoint, optim, records, rng
from ptmrun.config import Loop
from ptmrun.errors import Interrupted, UserError


class StepSource(Protocol):
    """Gives the micro-batches of steps start ... stop-1."""

    def iterate(self, start: int, stop: int) -> Iterator[list[dict[str, Any]]]: ...


@dataclass(frozen=True)
class Plan:
    """What a fit needs to know beside the model and the data."""

    loop: Loop
    steps: int
    seed: int
    purpose: str  # of the random numbers: "pretrain", "finetune/..."
    samples: int  # in the training split, for the epoch in the metrics
    batch_size: int
    depth_of: Callable[[str], int]  # parameter name -> depth, for layer-wise learning-rate decay
    depth: int  # of the head
    autocast: Callable[[], contextlib.AbstractContextManager]
    file: Path  # the resumable state
    metric: Callable[[dict[str, Any]], None]
    cut: Callable[[int], None]  # drops metrics after a step: those of a killed process
    stop: Callable[[], int | None]  # a pending signal
    show: Callable[[int, dict[str, float]], None]  # progress
    probe: Callable[[int], None] | None = None
    probe_at: frozenset[int] = frozenset()
    forward: Callable | None = None  # a compiled forward of the model, where there is one


def fit(model: nn.Module, batches: StepSource, plan: Plan) -> dict[str, float]:
    """Trains `model` in place for plan.steps steps, going on from plan.file when it is there; returns the last averages.

    `model(batch) -> (Loss, {name: Loss})`; what the second holds is averaged and logged. Raises Interrupted after saving when
    a signal is pending, UserError when losses or gradients are not finite `max_skipped` times in a row.
    """
    loop = plan.loop
    forward = plan.forward or model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.build(optim.groups(model, loop, plan.depth_of, plan.depth), loop)
    average = [p.detach().clone() for p in parameters] if loop.ema else []
    state = restore(model, optimizer, average, plan)
    window: dict[str, list[float]] = state["window"]
    start, saved, mark = state["step"], time.perf_counter(), time.perf_counter()
    logged, wait, seen, last = start, 0.0, 0, state["last"]
    steps = batches.iterate(start, plan.steps)
    for step in range(start, plan.steps):
        begun = time.perf_counter()
        micros = next(steps)
        wait += time.perf_counter() - begun
        rate = optim.lr_at(step, plan.steps, loop)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

        count: Tensor | int = 0
        for i, micro in enumerate(micros):
            rng.seed_everything(plan.seed, f"{plan.purpose}/dropout", step * loop.accumulate + i)
            with plan.autocast():
                loss, shown = forward(micro)
            # a single micro-batch is divided before backward; several are summed first and divided once all counts are known
            (loss.total / loss.n if len(micros) == 1 else loss.total).backward()
            count = count + loss.n
            for name, (total, n) in {"loss": loss, **shown}.items():
                sums = window.setdefault(name, [0.0, 0.0])
                sums[0] += float(total.detach())
                sums[1] += float(n)
            seen += len(micro["ids"])
        if len(micros) > 1:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], float(count))
        norm = float(nn.utils.clip_grad_norm_(parameters, loop.clip or math.inf))

        if math.isfinite(norm):
            optimizer.step()
            state["in_a_row"] = 0
            if loop.ema:
                with torch.no_grad():
                    torch._foreach_lerp_(average, list[Tensor](parameters), 1 - min(loop.ema, (1 + step) / (10 + step)))
        else:
            state["in_a_row"] += 1
            state["skipped"] += 1
            window.clear()
            if state["in_a_row"] > loop.max_skipped:
                raise not_finite(step, micros, plan)
        optimizer.zero_grad(set_to_none=True)

        state["step"] = done = step + 1
        if window and (done % loop.log_every == 0 or done == plan.steps):
            elapsed = time.perf_counter() - mark
            last = {name: total / n if n else 0.0 for name, (total, n) in window.items()}
            line = {"step": done, "epoch": round(done * plan.batch_size / plan.samples, 4), **last}
            line |= {"lr": rate, "grad_norm": norm, "skipped": state["skipped"]}
            line |= {"samples_per_s": round(seen / elapsed, 1), "data_wait": round(wait / elapsed, 4)}
            plan.metric(line)
            state["last"] = last
            window.clear()
            mark, logged, wait, seen = time.perf_counter(), done, 0.0, 0
            plan.show(done, {**last, **{k: line[k] for k in ("lr", "grad_norm", "samples_per_s", "data_wait")}})
        elif done - logged == 1 or done == start + 1:
            plan.show(done, {})
        if plan.probe and done in plan.probe_at:
            with averaged(parameters, average):
                plan.probe(done)
            mark, wait, seen = time.perf_counter(), 0.0, 0
        signum = plan.stop()
        if done < plan.steps and (signum or time.perf_counter() - saved >= loop.checkpoint_every):
            keep(model, optimizer, average, plan, state)
            saved = time.perf_counter()
        if signum and done < plan.steps:
            raise Interrupted(signum)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=False):
            parameter.copy_(mean)
    return last


@contextlib.contextmanager
def averaged(parameters: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """The averaged weights in place of the trained ones, where an average is kept."""
    now = [p.detach().clone() for p in parameters] if average else []
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=False):
            parameter.copy_(mean)
        yield
        for parameter, value in zip(parameters, now, strict=False):
            parameter.copy_(value)


def not_finite(step: int, micros: list[dict[str, Any]], plan: Plan) -> UserError:
    ids = torch.cat([m["ids"] for m in micros]).tolist()
    shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
    good = checkpoint.load(plan.file)[1].get("step") if plan.file.exists() else None
    last = f"the last checkpoint is of step {good}" if good is not None else "there is no checkpoint yet"
    return UserError(
        f"{plan.purpose}: loss or gradient not finite for {plan.loop.max_skipped + 1} steps in a row, up to step {step} "
        f"(samples {shown}); {last}; try a lower lr, more warmup or device.precision=fp32"
    )


def keep(model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], plan: Plan, state: dict[str, Any]) -> None:
    """Writes everything that going on bit-exactly needs; random numbers need no state (see rng.py)."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{i}": v for i, v in enumerate(average)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items() if v is not None}
    checkpoint.save(plan.file, tensors, {**state, "steps": plan.steps})


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], plan: Plan) -> dict[str, Any]:
    """The state to go on from; a fresh one where there is no checkpoint."""
    state: dict[str, Any] = {"step": 0, "skipped": 0, "in_a_row": 0, "window": {}, "last": {}}
    if not plan.file.exists():
        plan.cut(0)
        return state
    tensors, found = checkpoint.load(plan.file)
    records.check(records.State, found, str(plan.file))
    if found["steps"] != plan.steps or found["step"] > plan.steps:
        raise UserError(f"{plan.file}: not a checkpoint of this run's {plan.steps} steps; refused")
    if bad := [name for name, value in tensors.items() if not checkpoint.finite(value)]:
        raise UserError(f"{plan.file}: {bad[0]} holds NaN or Infinity; refused")
    checkpoint.into(model, checkpoint.part(tensors, "model."), plan.file)
    means = checkpoint.part(tensors, "average.")
    try:
        if [means.pop(str(i)).shape for i in range(len(average))] != [x.shape for x in average] or means:
            raise KeyError
        optim.load(optimizer, checkpoint.part(tensors, "optimizer."), plan.loop)
    except (KeyError, ValueError):
        raise UserError(f"{plan.file}: its averages and optimizer state do not fit the model; refused") from None
    with torch.no_grad():
        for i, mean in enumerate(average):
            mean.copy_(tensors[f"average.{i}"])
    plan.cut(found["step"])
    return {k: found[k] for k in state}
