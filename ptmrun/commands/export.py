"""`ptmrun export`: a run's model in a format that others read, without ptmrun."""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from ptmrun.commands.table import Call
from ptmrun.errors import UserError
from ptmrun.exports import bench, card, library
from ptmrun.exports.written import Written
from ptmrun.finetuning import methods
from ptmrun.runs.console import console
from ptmrun.runs.folder import Run
from ptmrun.stages.predictor import Predictor
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic

TOLERANCE = 1e-3  # of the largest answer


def export(run: Run, folder: Path, kind: str = "library", merge: bool = False, measure: bool = False) -> float:
    """Writes the fine-tuned model (first repeat, most labels), or the encoder where nothing was fine-tuned, into a new folder;
    loads it again and returns the largest difference, relative to the largest answer. kind: a file of exports/. `merge` adds what
    LoRA and its like trained to the weights; without it they stand apart. Needs neither the run's device nor, but to `measure`,
    its data set. Raises UserError when there is nothing to export, or to merge."""
    if os.path.lexists(folder):
        raise UserError(f"export {folder}: is there already; choose a folder that is not")
    tensor_files.check_name(folder)
    predictor = Predictor.load(run)
    networks, model = predictor.networks, predictor.model
    name = networks.cfg.finetune.name
    added: Any = methods.module_of(name) if model and name in methods.ADDED else None
    if merge and not hasattr(added, "merge"):
        raise UserError(f"merge=true: finetune={name} has added nothing that becomes part of the weights; leave it out")
    with run.lock():
        inputs, seen = predictor.examples()
        if merge:
            assert model is not None
            before = library.answers(model, inputs)
            added.merge(model.encoder.net)
            worst = float((library.answers(model, inputs) - before).abs().max())
            run.say(f"Merged: largest difference {worst:.1e} of answers up to {float(before.abs().max()):.1f}")
        if added and not merge and kind == "library":
            written: Written = library.write_added(networks, model, added, folder, inputs)
        else:
            written = importlib.import_module(f"ptmrun.exports.{kind}").write(networks, model, folder, inputs)
        worst, largest = gap(written.ours, written.theirs)
        again = f"largest difference {worst:.1e} on {seen}, whose answers go up to {largest:.3g}"
        run.say(f"Exported to {folder}: {written.what}. Loaded again: {again}")
        difference = {"format": kind, "largest_difference": worst, "largest_answer": largest, "samples": seen}
        write_atomic(folder / "difference.json", json.dumps(difference, indent=2) + "\n")
        card.write(predictor, folder, kind, written.what)
        if measure:
            console.print(bench.table(predictor, written, folder, kind))
    return worst / max(1.0, largest)


def gap(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """(the largest difference, the largest answer)"""
    ours, theirs = ours.float().cpu(), theirs.float().cpu()
    return float((ours - theirs).abs().max()), float(ours.abs().max())


def command(call: Call) -> int:
    """Exit code 1 where what was exported gives other answers than the run."""
    options = call.options
    worst = export(call.runs[0], Path(call.names[1]), options.format, options.merge, "--bench" in call.flags)
    if not worst <= TOLERANCE:
        print(f"ptmrun: export: the largest difference is above {TOLERANCE:g} of the largest answer", file=sys.stderr)
        return 1
    return 0
