"""Training with two processes against one, as the run folder counts it: without starting them and reading the data."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ptmrun.benchmarks.clock import in_turns, of_ptmrun
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.start import ONE_THREAD, PAIRS
from ptmrun.runs.folder import Run

WORDS = ["task=mim", "stage=pretrain", "pretrain.steps=20", "pretrain.accumulate=2", "pretrain.probes=0", *ONE_THREAD]


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    values = in_turns(partial(trained, 2, folder), partial(trained, 1, folder), min(pairs, PAIRS), warm=False)
    yield Row("processes", "mim with two processes / with one", "CPU s", values)


def trained(processes: int, folder: Path) -> float:
    """CPU seconds of all processes."""
    of_ptmrun(*WORDS, f"device.processes={processes}", f"outputs={folder}")
    return Run.open(folder / "latest").manifest["cpu_s"]["pretrain"]
