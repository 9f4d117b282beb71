"""What a training loop needs to know beside the model and the data."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ptmrun.config.schema import Loop
from ptmrun.training.processes import ALONE, Processes


class StepSource(Protocol):
    """Gives the micro-batches of steps start ... stop-1, of each step those of `own`."""

    def iterate(self, start: int, stop: int, own: slice = ...) -> Iterator[list[dict[str, Any]]]: ...


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
    cut: Callable[[int], None]  # drops metrics after a step: those of a killed process, or of a path that diverged
    stop: Callable[[], int | None]  # a pending signal
    show: Callable[[int, dict[str, float]], None]  # progress
    rate: Callable[[int], float] | None = None  # step -> learning rate, instead of the loop's schedule
    start: Path | None = None  # the state of another fit, to begin with
    save_last: bool = False  # the state after the last step too
    probe: Callable[[int], None] | None = None
    probe_at: frozenset[int] = frozenset()
    forward: Callable | None = None  # a compiled forward of the model, where there is one
    precision: str = "fp32"  # of autocast
    recover: bool = False  # go back and on more gently when training diverges, instead of stopping
    recovered: Callable[[list[dict[str, Any]]], None] = lambda events: None  # all recoveries so far
    bad: Path | None = None  # where weights and batch go when training stops because it diverges
    replay: str = ""  # what to type then
    processes: Processes = ALONE  # that train it
    shard: bool = False  # each of these a part of its weights
