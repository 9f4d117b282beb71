"""`ptmrun export`: a run's model as its library's own, without ptmrun."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from ptmrun.commands.table import Call
from ptmrun.errors import UserError
from ptmrun.finetuning import methods
from ptmrun.models import library_format
from ptmrun.runs.folder import Run
from ptmrun.stages.networks import Networks
from ptmrun.stages.predictor import Predictor
from ptmrun.stages.trials import drops_pretraining_parts
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic

TOLERANCE = 1e-3  # of the largest answer


def export(run: Run, folder: Path, merge: bool = False) -> float:
    """Writes the fine-tuned model (first repeat, most labels), or the encoder where nothing was fine-tuned, into a new
    folder; loads it again in the library and returns the largest difference, relative to the largest answer. `merge` adds what
    LoRA and its like trained to the weights; without it they stand apart. Needs neither the run's data set nor its device.
    Raises UserError when there is nothing to export, or to merge."""
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
            before = answers(model, inputs)
            added.merge(model.encoder.net)
            worst = float((answers(model, inputs) - before).abs().max())
            run.say(f"Merged: largest difference {worst:.1e} of answers up to {float(before.abs().max()):.1f}")
        if added and not merge:
            what, ours, theirs = write_added(networks, model, added, folder, inputs)
        else:
            what, ours, theirs = write(networks, model, folder, inputs)
        worst = float((ours - theirs).abs().max())
        run.say(f"Exported to {folder}: {what}. Loaded again: largest difference {worst:.1e} on {seen}")
    return worst / max(1.0, float(ours.abs().max()))


@torch.no_grad()
def write_added(networks: Networks, model: Any, method: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """The encoder as it was before, but for what of it was trained, and beside it what fine-tuning added and the head."""
    ours, before = answers(model, inputs), networks.starting_encoder()
    names = before.net.state_dict().keys()
    trained = {name.replace(".base_layer.", "."): value for name, value in methods.trained(model.encoder.net).items()}
    own = {name: value for name, value in trained.items() if name in names}
    before.net.load_state_dict(own, strict=False)
    before.save(folder, *networks.processor.preprocessing)
    method.save(model.encoder.net, folder / "adapter")
    back = read_back(networks, model.encoder, folder)
    method.load(back.net, folder / "adapter")
    model.encoder = back
    save_head(networks, model, folder)
    encoder = "the encoder with what of its own was trained" if own else "the encoder as it was"
    return f"{encoder}, what {networks.cfg.finetune.name} added (adapter/), and its head", ours, answers(model, inputs)


@torch.no_grad()
def write(networks: Networks, model: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """(what was written, what the run gives for these inputs, what the export gives)"""
    encoder: Any = (model.encoder if model else networks.starting_encoder()).eval()
    whole = encoder.classifier(model.head, model.auxiliary_head, networks.classes) if model and model.linear_probe else None
    if whole is None:
        return write_apart(networks, model, encoder, folder, inputs)
    net, about = whole
    library_format.save(net, folder, about, encoder.preprocessing(*networks.processor.preprocessing))
    if isinstance(net, PreTrainedModel):
        with library_format.quiet():
            theirs: Any = AutoModelForImageClassification.from_pretrained(folder)
    else:
        theirs = encoder.empty(len(networks.classes))
        theirs.load_state_dict(library_format.tensors_of(folder))
    given = theirs.to(networks.device).eval()(encoder.prepare(inputs))
    return type(net).__name__, model.eval().logits(inputs), given.logits if isinstance(net, PreTrainedModel) else given


def write_apart(networks: Networks, model: Any, encoder: Any, folder: Path, inputs: Any) -> tuple[str, Tensor, Tensor]:
    """The encoder as its library reads it and, where something was fine-tuned, the head that stands on it and the classes."""
    complete = encoder
    if model and drops_pretraining_parts(networks, encoder):  # the library's readers want all of it
        complete = networks.starting_encoder()
        complete.load_state_dict(encoder.state_dict(), strict=False)
    complete.save(folder, *networks.processor.preprocessing)
    back = read_back(networks, encoder, folder)
    if model is None:
        return "the encoder; nothing was fine-tuned", encoder.features(inputs), back.features(inputs)
    ours = answers(model, inputs)
    model.encoder, what = back, "the encoder"
    if save_head(networks, model, folder):
        why = f", as the library has no classifier like it ({encoder.why_no_classifier})" if encoder.why_no_classifier else ""
        what += f", and its linear head apart{why}"
    return what, ours, answers(model, inputs)


def read_back(networks: Networks, encoder: Any, folder: Path) -> Any:
    """The encoder that a folder holds, at the side at which the one that was saved works."""
    back = networks.encoder().eval()
    back.load(folder)
    back.resize = encoder.resize
    return back


def save_head(networks: Networks, model: Any, folder: Path) -> bool:
    """Writes the linear head and the names of its classes, and takes it from there again; whether there is one."""
    if networks.classes:
        write_atomic(folder / "classes.json", json.dumps(networks.classes, ensure_ascii=False) + "\n")
    head = dict(model.named_children()).get("head")
    if head is None:
        return False
    tensor_files.save(folder / "head.safetensors", head.state_dict())
    head.load_state_dict(tensor_files.load(folder / "head.safetensors")[0])
    return True


def answers(model: Any, inputs: Any) -> Tensor:
    """All numbers that a fine-tuned model says of some samples."""
    return torch.cat([x.float().flatten() for x in model.predict([inputs]).values()])


def command(call: Call) -> int:
    """Exit code 1 where the library gives other answers than the run."""
    worst = export(call.runs[0], Path(call.names[1]), call.options.merge)
    if not worst <= TOLERANCE:
        print(f"ptmrun: export: the largest difference is above {TOLERANCE:g} of the largest answer", file=sys.stderr)
        return 1
    return 0
