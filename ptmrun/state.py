"""The resumable state of a fit: everything that going on bit-exactly needs. Random numbers need no state (see rng.py)."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun import checkpoint
from ptmrun.errors import UserError


@dataclass
class State:
    """Where a fit is. `good` are the tensors that recovery goes back to (empty when it never does): those before step
    `good_step`, whose own loss was no higher than the first one."""

    precision: str
    step: int = 0
    skipped: int = 0
    in_a_row: int = 0  # skipped, up to now
    first: list[float] = field(default_factory=list)  # the loss of the first finite step, when there was one
    window: dict[str, list[float]] = field(default_factory=dict)  # {name: [sum, items]} since the last metrics line
    last: dict[str, float] = field(default_factory=dict)  # averages in the last metrics line
    lr_scale: float = 1.0
    recoveries: list[dict[str, Any]] = field(default_factory=list)
    good: dict[str, Tensor] = field(default_factory=dict)
    good_step: int = 0


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> dict[str, Tensor]:
    """Weights, averaged weights and moments by name."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{i}": v for i, v in enumerate(average)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in moments.items() if v is not None}
    return tensors


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In main memory, where later steps do not change them."""
    return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}


def save(path: Path, tensors: dict[str, Tensor], state: State, steps: int) -> None:
    """Writes tensors (of `tensors_of`) and state in one file."""
    numbers = {f.name: getattr(state, f.name) for f in dataclasses.fields(State) if f.name != "good"}
    checkpoint.save(path, {**tensors, **{f"good.{k}": v for k, v in state.good.items()}}, {**numbers, "steps": steps})


def restore(path: Path, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> State:
    """Loads what `save` wrote. Raises UserError when it does not fit the model or is of a longer fit."""
    tensors, found = checkpoint.load(path)
    fresh = dataclasses.asdict(State("fp32"))
    fits = all(type(found.get(k)) is type(v) for k, v in fresh.items() if k != "good")
    if not fits or type(found.get("steps")) is not int or not 0 <= found["step"] <= found["steps"] <= steps:
        raise UserError(f"{path}: not a checkpoint of this run's {steps} steps; refused")
    checkpoint.into(model, checkpoint.part(tensors, "model."), path)
    with torch.no_grad():
        for i, mean in enumerate(average):
            mean.copy_(tensors[f"average.{i}"])
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.part(tensors, "optimizer.").items():
        number, kind = name.split(".", 1)
        entries.setdefault(int(number), {})[kind] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    return State(**{k: found[k] for k in fresh if k != "good"}, good=checkpoint.part(tensors, "good."))
