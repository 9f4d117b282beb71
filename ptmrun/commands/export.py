"""`ptmrun export`: a run's model as its library's own, without ptmrun."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from ptmrun.config import schema as config
from ptmrun.errors import UserError
from ptmrun.finetuning import methods
from ptmrun.models import library_format
from ptmrun.runs.folder import Run, write_atomic
from ptmrun.stages.context import ENCODER, START, Context, source
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import label_counts, trials, trims, tuned, weights_file
from ptmrun.storage import tensor_files
from ptmrun.training.signals import Stop

SAMPLES = 64  # real test samples that the export is compared on


def export(run: Run, folder: Path, merge: bool = False) -> float:
    """Writes the fine-tuned model (first repeat, most labels), or the encoder where nothing was fine-tuned, into a new
    folder; loads it again in the library and returns the largest difference. `merge` adds what LoRA and its like trained to the
    weights; without it they stand apart. Raises UserError when there is nothing to export, or to merge."""
    if os.path.lexists(folder):
        raise UserError(f"export {folder}: is there already; choose a folder that is not")
    cfg = config.load(run.path("config.yaml"))
    trial = trials(cfg, "tuned", label_counts(cfg)[-1])[0]
    fine_tuned = source(run, cfg, weights_file(trial))
    if fine_tuned is None and source(run, cfg, ENCODER) is None and source(run, cfg, START) is None:
        raise UserError(f"{run.folder}: has trained nothing yet that could be exported")
    module = methods.ADDED.get(cfg.finetune.name) if fine_tuned else None
    added: Any = importlib.import_module(f"ptmrun.finetuning.{module}") if module else None
    if merge and not hasattr(added, "merge"):
        raise UserError(
            f"merge=true: finetune={cfg.finetune.name} has added nothing that becomes part of the weights; leave it out"
        )
    with run.lock():
        context = prepare(run, cfg, Stop())
        inputs = context.inputs(next(context.data.test.spaced(SAMPLES).all()))
        model: Any = tuned(context, trial) if fine_tuned else None
        if merge:
            before = answers(model, inputs)
            added.merge(model.encoder.net)
            worst = float((answers(model, inputs) - before).abs().max())
            run.say(f"Merged: largest difference {worst:.1e} of answers up to {float(before.abs().max()):.1f}")
        if added and not merge:
            what, ours, theirs = write_added(context, model, added, folder, inputs)
        else:
            what, ours, theirs = write(context, model, folder, inputs)
        worst = float((ours - theirs).abs().max())
        seen = f"{min(SAMPLES, len(context.data.test))} test {context.data.noun}"
        run.say(f"Exported to {folder}: {what}. Loaded again: largest difference {worst:.1e} on {seen}")
    return worst


@torch.no_grad()
def write_added(context: Context, model: Any, method: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """The encoder as it was before, but for what of it was trained, and beside it what fine-tuning added and the head."""
    ours, before = answers(model, inputs), context.pretrained()
    names = before.net.state_dict().keys()
    trained = {name.replace(".base_layer.", "."): value for name, value in methods.trained(model.encoder.net).items()}
    own = {name: value for name, value in trained.items() if name in names}
    before.net.load_state_dict(own, strict=False)
    before.save(folder, *context.data.preprocessing)
    method.save(model.encoder.net, folder / "adapter")
    back = read_back(context, model.encoder, folder)
    method.load(back.net, folder / "adapter")
    model.encoder = back
    save_head(context, model, folder)
    encoder = "the encoder with what of its own was trained" if own else "the encoder as it was"
    return f"{encoder}, what {context.cfg.finetune.name} added (adapter/), and its head", ours, answers(model, inputs)


@torch.no_grad()
def write(context: Context, model: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """(what was written, what the run gives for these inputs, what the export gives)"""
    encoder = (model.encoder if model else context.pretrained()).eval()
    whole = None
    if model and hasattr(encoder, "classifier"):
        whole = encoder.classifier(model.head, model.auxiliary_head, context.data.classes)
    if whole is None:
        return write_apart(context, model, encoder, folder, inputs)
    net, about = whole
    library_format.save(net, folder, about, encoder.preprocessing(*context.data.preprocessing))
    if isinstance(net, PreTrainedModel):
        with library_format.quiet():
            theirs: Any = AutoModelForImageClassification.from_pretrained(folder)
    else:
        theirs = encoder.empty(len(context.data.classes))
        theirs.load_state_dict(library_format.tensors_of(folder))
    given = theirs.to(context.device).eval()(encoder.prepare(inputs))
    return type(net).__name__, model.eval().logits(inputs), given.logits if isinstance(net, PreTrainedModel) else given


def write_apart(context: Context, model: Any, encoder: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """The encoder as its library reads it and, where something was fine-tuned, the head that stands on it and the classes."""
    complete = encoder
    if model and trims(context, encoder):  # the library's readers want all of it
        complete = context.pretrained()
        complete.load_state_dict(encoder.state_dict(), strict=False)
    complete.save(folder, *context.data.preprocessing)
    back = read_back(context, encoder, folder)
    if model is None:
        return "the encoder; nothing was fine-tuned", encoder.features(inputs), back.features(inputs)
    ours = answers(model, inputs)
    model.encoder, what = back, "the encoder"
    if save_head(context, model, folder):
        why = f", as the library has no classifier like it ({encoder.alone})" if hasattr(encoder, "alone") else ""
        what += f", and its linear head apart{why}"
    return what, ours, answers(model, inputs)


def read_back(context: Context, encoder: Any, folder: Path) -> Any:
    """The encoder that a folder holds, at the side at which the one that was saved works."""
    back = context.encoder().eval()
    back.load(folder)
    back.resize = getattr(encoder, "resize", None)
    return back


def save_head(context: Context, model: Any, folder: Path) -> bool:
    """Writes the linear head and the names of its classes, and takes it from there again; whether there is one."""
    if context.data.classes:
        write_atomic(folder / "classes.json", json.dumps(context.data.classes, ensure_ascii=False) + "\n")
    if not hasattr(model, "head"):
        return False
    tensor_files.save(folder / "head.safetensors", model.head.state_dict())
    model.head.load_state_dict(tensor_files.load(folder / "head.safetensors")[0])
    return True


def answers(model: Any, inputs: Any) -> Tensor:
    """All numbers that a fine-tuned model says of some samples."""
    return torch.cat([x.float().flatten() for x in model.predict([inputs]).values()])
