"""Pictures that a model draws, as PNG files."""

import io
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.config import schema
from ptmrun.errors import UserError
from ptmrun.models.base import Encoder
from ptmrun.reports.figures import as_array, tiled
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import EXAMPLES, source
from ptmrun.stages.drawings import GUIDANCE, TEMPERATURE, TOP_P
from ptmrun.stages.networks import Networks
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic

SAMPLES, A_ROW = 16, 8  # pictures, where no number is given, and of them in a row of the grid
CHUNK = 64  # pictures that are drawn at a time
COMPLETIONS = 2  # of each test sample
LEAST = 64  # pixels a side of a picture in the grid


@torch.no_grad()
def draw(run: Run, networks: Networks, encoder: Encoder, settings: schema.Sampling) -> Path:
    """Draws pictures, number i by the seed and i alone; writes each, and all of them as grid.png, into a new folder `out`, or one
    of the run. Where the model completes pictures, completed.png has test samples whose lower half it drew. The folder.

    Raises UserError where `out` is there already.
    """
    for key in ("prompt", "guidance") if networks.processor.tokenizer is None else ():
        if key in settings.model_fields_set:
            raise UserError(f"{key}: the model of this run was trained without texts; leave it out")
    if settings.out is None:
        words = re.sub(r"\W+", "_", settings.prompt)[:60].strip("_") or "drawn"
        folder = run.path("drawn", f"{words}_seed{settings.seed}")
    elif (folder := Path(settings.out).expanduser()).exists():
        raise UserError(f"out={settings.out}: is there already; choose a folder that is not")
    count = settings.samples or SAMPLES
    rows = [torch.rand(encoder.draws, generator=rng.generator(settings.seed, "generate", i)) for i in range(count)]
    temperature = TEMPERATURE if settings.temperature is None else settings.temperature
    sampling = temperature, settings.top_k, settings.top_p or TOP_P
    guidance = GUIDANCE if settings.guidance is None else settings.guidance
    pictures = []
    for noise in torch.stack(rows).to(networks.device).split(CHUNK):
        with networks.autocast():
            text = networks.processor.texts([settings.prompt] * len(noise)) if settings.prompt else None
            pictures.append(networks.processor.back(encoder.draw(noise, text, *sampling, guidance).float()).cpu())
    drawn = torch.cat(pictures)
    for i, picture in enumerate(drawn):
        write_atomic(folder / f"{i:03}.png", png(as_array(picture)))
    write_atomic(folder / "grid.png", png(as_array(grid(drawn))))
    if encoder.completes and (examples := source(run, networks.cfg, EXAMPLES)):
        samples = networks.processor(networks.processor.unpacked(tensor_files.load(examples)[0]))
        noises = [
            torch.rand(len(samples), encoder.draws, generator=rng.generator(settings.seed, "complete", i)).to(samples.device)
            for i in range(COMPLETIONS)
        ]
        with networks.autocast():
            shown = torch.cat(list(encoder.completed(samples, noises, *sampling).values()))
        completed = grid(networks.processor.back(shown.float()).cpu(), len(samples))
        write_atomic(folder / "completed.png", png(as_array(completed)))
    return folder


def grid(pictures: Tensor, width: int = A_ROW) -> Tensor:
    """Pictures [N, C, S, S] in rows, large enough to be looked at: [C, H, W]."""
    times = -(-LEAST // pictures.shape[-1])
    large = F.interpolate(pictures.float(), scale_factor=times, mode="nearest")
    return torch.from_numpy(np.atleast_3d(tiled(list(large.split(width)), min(width, len(large))))).permute(2, 0, 1)


def png(picture: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] in [0, 1]"""
    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
