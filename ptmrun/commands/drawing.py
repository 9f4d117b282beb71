"""Pictures that a model draws, as PNG files."""

import io
import re
from pathlib import Path
from typing import Any

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
from ptmrun.stages.predictor import pretrained
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic

SAMPLES, A_ROW = 16, 8  # pictures, where no number is given, and of them in a row of the grid
CHUNK = 64  # pictures that are drawn at a time
LISTED = 20  # classes, in a message
COMPLETIONS = 2  # of each test sample
LEAST = 64  # pixels a side of a picture in the grid


@torch.no_grad()
def draw(run: Run, networks: Networks, encoder: Encoder, settings: schema.Sampling) -> Path:
    """Draws pictures, number i by the seed and i alone; writes each, and all of them as grid.png, into a new folder `out`, or one
    of the run. Where the model completes pictures, completed.png has test samples whose lower half it drew. The folder.

    With `rerank`, a run of CLIP, those that fit the prompt best come first. Raises UserError where `out` is there already.
    """
    if settings.rerank and not settings.prompt:
        raise UserError("rerank: says how well pictures fit a prompt; give prompt= too")
    for key in ("prompt", "guidance") if networks.processor.tokenizer is None and not encoder.classes else ():
        if key in settings.model_fields_set:
            raise UserError(f"{key}: the model of this run was trained without texts or classes; leave it out")
    if encoder.classes and settings.prompt and settings.prompt not in networks.classes:
        raise UserError(f"prompt={settings.prompt}: expected one of the classes, {', '.join(networks.classes[:LISTED])}")
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
            text = condition(networks, encoder, settings.prompt, len(noise))
            pictures.append(networks.processor.back(encoder.draw(noise, text, *sampling, guidance).float()).cpu())
    drawn = torch.cat(pictures)
    if settings.rerank:
        drawn = drawn[fits(drawn, settings.prompt, Run.open(Path(settings.rerank))).argsort(descending=True, stable=True)]
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


def condition(networks: Networks, encoder: Encoder, prompt: str, count: int) -> Any:
    """What `count` pictures are drawn of: a text, or a class; None where there is no prompt."""
    if not prompt:
        return None
    if encoder.classes:
        return torch.full((count,), networks.classes.index(prompt), device=networks.device)
    return networks.processor.texts([prompt] * count)


@torch.no_grad()
def fits(pictures: Tensor, prompt: str, run: Run) -> Tensor:
    """Cosine of each picture, [N, C, S, S] in [0, 1], with a text, by a run that has learned both in one space: [N]."""
    networks, clip = pretrained(run, {"aligned"}, "does not compare pictures with texts")
    processor: Any = networks.processor
    encoder: Any = clip
    raw = [as_pixels(as_array(picture)) for picture in pictures]
    samples = processor.read([(picture, prompt) for picture in processor.image.opened(raw)])
    with networks.autocast():
        pair = processor(samples)
        images = F.normalize(encoder.image_embeddings(pair.images).float(), dim=1)
        texts = F.normalize(encoder.text_embeddings(pair.tokens).float(), dim=1)
    return (images * texts).sum(1).cpu()


def grid(pictures: Tensor, width: int = A_ROW) -> Tensor:
    """Pictures [N, C, S, S] in rows, large enough to be looked at: [C, H, W]."""
    times = -(-LEAST // pictures.shape[-1])
    large = F.interpolate(pictures.float(), scale_factor=times, mode="nearest")
    return torch.from_numpy(np.atleast_3d(tiled(list(large.split(width)), min(width, len(large))))).permute(2, 0, 1)


def png(picture: np.ndarray) -> bytes:
    """[H, W] or [H, W, 3] in [0, 1]"""
    buffer = io.BytesIO()
    Image.fromarray(as_pixels(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def as_pixels(picture: np.ndarray) -> np.ndarray:
    return (picture * 255).round().astype(np.uint8)
