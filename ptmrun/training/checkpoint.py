"""The resumable state of a fit: everything that going on bit-exactly needs. Random numbers need no state (see rng.py)."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.config.schema import Loop
from ptmrun.errors import UserError
from ptmrun.runs import records
from ptmrun.storage import tensor_files
from ptmrun.training import optim
from ptmrun.training.layout import Whole


@dataclass
class State:
    """Where a fit is. `good` are the tensors that recovery goes back to (empty when it never does), as far as this process writes
    them: those before step `good_step`, whose own loss was no higher than the first one."""

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


def places(model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor]) -> dict[str, Tensor]:
    """By the same names, which tensor of this process each is, or is like."""
    like = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"average.{i}": v for i, v in enumerate(average)}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        like |= {f"optimizer.{i}.{kind}": parameter for kind in optim.MOMENTS}
    return like


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """In main memory, where later steps do not change them."""
    return {k: v.detach().to("cpu", copy=True) for k, v in tensors.items()}


def save(path: Path, tensors: dict[str, Tensor], state: State, steps: int, layout: Whole) -> None:
    """Writes tensors (of `tensors_of`, what each process has of them) and state."""
    numbers = {f.name: getattr(state, f.name) for f in dataclasses.fields(State) if f.name != "good"}
    layout.save(path, {**tensors, **{f"good.{k}": v for k, v in state.good.items()}}, {**numbers, "steps": steps})


def restore(
    path: Path,
    saved: tuple[dict[str, Tensor], dict[str, Any]],
    steps: int,
    loop: Loop,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
) -> State:
    """Takes on what `save` wrote to `path`. Raises UserError when it does not fit the model or is of a longer fit."""
    tensors, state = saved
    records.check(records.State, state, str(path))
    if not state["step"] <= state["steps"] <= steps:
        raise UserError(f"{path}: not a checkpoint of this run's {steps} steps; refused")
    if bad := [name for name, value in tensors.items() if not tensor_files.finite(value)]:
        raise UserError(f"{path}: {bad[0]} holds NaN or Infinity; refused")
    tensor_files.into(model, tensor_files.part(tensors, "model."), path)
    means = tensor_files.part(tensors, "average.")
    try:
        if [means.pop(str(i)).shape for i in range(len(average))] != [x.shape for x in average] or means:
            raise KeyError
        optim.load(optimizer, tensor_files.part(tensors, "optimizer."), loop)
    except (KeyError, ValueError):
        raise UserError(f"{path}: its averages and optimizer state do not fit the model; refused") from None
    with torch.no_grad():
        for i, mean in enumerate(average):
            mean.copy_(tensors[f"average.{i}"])
    names = [f.name for f in dataclasses.fields(State) if f.name != "good"]
    return State(**{k: state[k] for k in names}, good=tensor_files.part(tensors, "good."))
