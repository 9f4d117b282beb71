"""`ptmrun export`: a run's model as its library's own, without ptmrun."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from ptmrun import checkpoint, config
from ptmrun.context import ENCODER, START, Context, source
from ptmrun.errors import UserError
from ptmrun.models import files
from ptmrun.prepare import prepare
from ptmrun.run import Run
from ptmrun.signals import Stop
from ptmrun.trials import label_counts, trials, tuned, weights_file

IMAGES = 64  # real test images that the export is compared on


def export(run: Run, folder: Path) -> float:
    """Writes the fine-tuned classifier (first repeat, most labels), or the encoder where nothing was fine-tuned, into a new
    folder; loads it again in the library and returns the largest difference. Raises UserError when there is nothing to export."""
    if os.path.lexists(folder):
        raise UserError(f"export {folder}: is there already; choose a folder that is not")
    cfg = config.load(run.path("config.yaml"))
    trial = trials(cfg, "tuned", max(label_counts(cfg), key=lambda n: n or math.inf))[0]
    fine_tuned = source(run, cfg, weights_file(trial))
    if fine_tuned is None and source(run, cfg, ENCODER) is None and source(run, cfg, START) is None:
        raise UserError(f"{run.folder}: has trained nothing yet that could be exported")
    with run.lock():
        context = prepare(run, cfg, Stop())
        images = context.inputs(context.data.test.some(IMAGES))
        what, ours, theirs = write(context, tuned(context, trial) if fine_tuned else None, folder, images)
        worst = float((ours - theirs).abs().max())
        run.say(f"Exported to {folder}: {what}. Loaded again: largest difference {worst:.1e} on {len(images)} test images")
    return worst


@torch.no_grad()
def write(context: Context, model: Any, folder: Path, images: Tensor) -> tuple[str, Tensor, Tensor]:
    """(what was written, what the run gives for these images, what the export gives)"""
    encoder = (model.encoder if model else context.pretrained()).eval()
    if not hasattr(encoder, "classifier"):
        raise UserError(f"export: model={context.cfg.model.name} has no classifier in its library, which reads {ENCODER}")
    whole = encoder.classifier(model.head, model.auxiliary_head, context.data.classes) if model else None
    if whole is None:
        encoder.save(folder, *context.data.preprocessing)
        back = context.encoder().eval()
        back.load(folder)
        if not model:
            return "the encoder; nothing was fine-tuned", encoder.features(images), back.features(images)
        back.resize = getattr(encoder, "resize", None)
        checkpoint.save(folder / "head.safetensors", model.head.state_dict())
        model.head.load_state_dict(checkpoint.load(folder / "head.safetensors")[0])
        what = f"the encoder, and its linear head apart, as the library has no classifier like it ({encoder.alone})"
        return what, model.eval().logits(images), model.head(back.features(images))
    net, about = whole
    files.save(net, folder, about, encoder.preprocessing(*context.data.preprocessing))
    if isinstance(net, PreTrainedModel):
        with files.quiet():
            theirs: Any = AutoModelForImageClassification.from_pretrained(folder)
    else:
        theirs = encoder.empty(len(context.data.classes))
        theirs.load_state_dict(files.tensors_of(folder))
    given = theirs.to(context.device).eval()(encoder.prepare(images))
    return type(net).__name__, model.eval().logits(images), given.logits if isinstance(net, PreTrainedModel) else given
