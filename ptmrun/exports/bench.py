"""What an export costs beside the run's own model: size, score on the test split, milliseconds a sample."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ptmrun.batch import packed
from ptmrun.exports.written import Written
from ptmrun.runs.lineage import source
from ptmrun.stages import prepare
from ptmrun.stages.predictor import Predictor
from ptmrun.stages.trials import best_trial, weights_file
from ptmrun.storage.files import size_of

SAMPLES = 1000  # of the test split at most
TIMES = 9  # of which the median is shown
BATCHES = (1, 32)


@torch.no_grad()
def table(predictor: Predictor, written: Written, folder: Path, name: str) -> Table:
    """One row the run's own model, one the export, timed in turns. The score is of problems whose answers are classes."""
    networks, model = predictor.networks, predictor.model
    answers = model and (model.library_task or model.graph_task)
    own: Callable[[Any], Tensor] = model.outputs if model and answers else predictor.encoder.features
    calls = {"run": own} | ({name: written.call} if written.call else {})
    weights = source(networks.run, networks.cfg, weights_file(best_trial(networks.cfg)))
    sizes = {"run": weights.stat().st_size if weights else 0, name: size_of(folder)}
    inputs, _ = predictor.examples()
    spent = {size: milliseconds(calls, repeated(networks.processor, inputs, size)) for size in BATCHES}
    scores = test_scores(predictor, calls) if model and model.library_task in ("classes", "several") else {}
    made = Table("format", "size", "test score", *(f"ms a sample, batch {size}" for size in BATCHES))
    for row in calls:
        score = f"{scores[row]:.4f}" if row in scores else ""
        made.add_row(row, f"{sizes[row] / 1e6:.1f} MB", score, *(f"{spent[size][row] / size:.2f}" for size in BATCHES))
    return made


def repeated(processor: Any, inputs: Any, size: int) -> Any:
    """As many inputs, of those that are there."""
    rows = torch.arange(size) % len(next(iter(packed(inputs).values())))
    return processor.unpacked({name: value[rows.to(value.device)] for name, value in packed(inputs).items()})


def milliseconds(calls: dict[str, Callable[[Any], Tensor]], inputs: Any) -> dict[str, float]:
    """Of each, the median of several calls in turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TIMES + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            call(inputs)
            if turn:  # the first warms up
                spent[name].append(1000 * (time.perf_counter() - begun))
    return {name: sorted(values)[len(values) // 2] for name, values in spent.items()}


def test_scores(predictor: Predictor, calls: dict[str, Callable[[Any], Tensor]]) -> dict[str, float]:
    """On the run's test split, of which SAMPLES. Raises UserError where its data cannot be read."""
    networks = predictor.networks
    split = prepare.read(networks.run, networks.cfg, lambda title, done, total: None).test.evenly_spaced(SAMPLES)
    batches = [networks.processor(batch) for batch in split.all()]
    logits = {name: torch.cat([call(batch).float().cpu() for batch in batches]) for name, call in calls.items()}
    return {name: networks.problem.score({"logits": values}, split) for name, values in logits.items()}
