"""What the parts of `make bench` share: ptmrun's loop, one written by hand, and ratios of CPU time from interleaved runs."""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptmrun.training import device, optim
from ptmrun.training.loop import fit
from ptmrun.training.plan import Plan
from ptmrun.training.schedule import lr_at

CPU, PAIRS = torch.device("cpu"), 7


def default_precision() -> str:
    """What device.precision=auto is on this processor."""
    return "bf16" if device.known_bf16_speed(CPU, 1) > 1.4 else "fp32"


def ours(objective: Any, batches: Any, cfg: Any, precision: str, folder: Path) -> float:
    """CPU seconds of train.fit."""
    plan = Plan(
        loop=cfg.pretrain,
        steps=cfg.pretrain.steps,
        seed=0,
        purpose="bench",
        samples=len(batches.split),
        batch_size=cfg.pretrain.batch_size,
        depth_of=lambda name: 0,
        depth=0,
        autocast=lambda: device.autocast(CPU, precision),
        file=folder / "state.safetensors",
        metric=lambda line: None,
        cut=lambda step: None,
        stop=lambda: None,
        show=lambda step, values: None,
    )
    plan.file.unlink(missing_ok=True)  # of an earlier run that was slow enough to be saved
    start = time.process_time()
    fit(objective, batches, plan)
    return time.process_time() - start


def by_hand(objective: Any, batches: Any, cfg: Any, precision: str) -> float:
    """CPU seconds of the same work."""
    loop = cfg.pretrain
    start = time.process_time()
    optimizer = optim.build(optim.groups(objective, loop, lambda name: 0, 0), loop)
    parameters = list(objective.parameters())
    context = device.autocast(CPU, precision) if precision == "bf16" else contextlib.nullcontext()
    for step, [batch] in enumerate(batches.iterate(0, loop.steps)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, loop.steps, loop)
        with context:
            loss, _ = objective(batch)
        (loss.total / loss.n).backward()
        nn.utils.clip_grad_norm_(parameters, loop.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - start


def compare(name: str, a: Callable[[], float], b: Callable[[], float]) -> None:
    """Runs a and b in turn; prints the median of the paired ratios and their range."""
    a(), b()
    show(name, [(a(), b()) if i % 2 else (b(), a())[::-1] for i in range(PAIRS)])


def compare_steps(task: str, setting: Callable[[str], tuple], folder: Path) -> None:
    """The loop with what `setting(precision)` gives, (objective, batches, config), against the one by hand; bf16 against fp32."""
    precision = default_precision()
    models = {kind: setting(kind) for kind in ("fp32", "bf16")}
    name = f"{task}: the loop / a hand-written loop ({precision}), CPU time"
    compare(name, lambda: ours(*models[precision], precision, folder), lambda: by_hand(*models[precision], precision))
    compare(
        f"{task}: bf16 / fp32 steps, CPU time", lambda: by_hand(*models["bf16"], "bf16"), lambda: by_hand(*models["fp32"], "fp32")
    )


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    ratios = sorted(x / y for x, y in pairs)
    print(f"{name:<58} {statistics.median(ratios):.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)", flush=True)


def end_to_end(
    name: str,
    noun: str,
    setting: Callable[[str, int], tuple],
    peer: Callable[[Any, Any, int], tuple[float, nn.Module]],
    losses: Callable[[Any, nn.Module], tuple[float, float]],
    pairs: int,
    folder: Path,
) -> None:
    """Trains from scratch with transformers' Trainer and with ours in turn, a seed a pair; and the held-out loss of both.

    setting(precision, seed) -> (objective, batches, config); peer(objective, config, seed) -> (CPU seconds, model);
    losses(objective, model) -> (ours, theirs).
    """
    precision = default_precision()
    times, found = [], []
    for seed in range(pairs):
        ours_first = seed % 2
        objective, batches, cfg = setting(precision, seed)
        mine = ours(objective, batches, cfg, precision, folder) if ours_first else 0.0
        torch.use_deterministic_algorithms(False)
        their, model = peer(objective, cfg, seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        mine = mine or ours(objective, batches, cfg, precision, folder)
        times.append((their, mine))
        with torch.no_grad():
            found.append(losses(objective.eval(), model.eval()))
    show(f"{name}, batch {cfg.pretrain.batch_size}: Trainer / ptmrun ({precision}), CPU time", times)
    rows = [" ".join(f"{x:.3f}" for x in side) for side in zip(*found, strict=True)]
    count = cfg.pretrain.batch_size * cfg.pretrain.steps
    print(f"  held-out loss after {count} {noun}: ptmrun {rows[0]}; Trainer {rows[1]}", flush=True)
