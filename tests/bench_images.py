"""The part of `make bench` (bench.py) on images: ptmrun's built-in digits."""

from functools import partial
from pathlib import Path
from typing import Any

import bench_trainer
from bench_loops import CPU, by_hand, compare, compare_steps, end_to_end
from torch import nn

from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.data.images import load as images
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.sources import packaged
from ptmrun.models import vit
from ptmrun.objectives import mae, simmim
from ptmrun.training import device

STEPS = 20


def load(cfg: Any) -> images.Images:
    return images.load(packaged.read, cfg.dataset, 0, lambda *_: None)


def setting(task: str, overrides: list[str], precision: str, seed: int = 0) -> tuple:
    """(objective, batches, config) of `ptmrun task=...` on the built-in digits."""
    cfg = compose([f"task={task}", f"pretrain.steps={STEPS}", *overrides])
    data = load(cfg)
    changes, _ = vit.resolve(cfg.model, ImageSpec(data.size, data.channels))
    options = cfg.model.model_copy(update=changes)
    rng.seed_everything(seed, "bench")
    encoder = vit.build(options, ImageSpec(data.size, data.channels), device.attention(CPU, precision))
    objective = {"mim": mae, "mae": mae, "simmim": simmim}[task].Objective(encoder, cfg.task)
    normalise = ImageProcessor(data.mean, data.std, CPU)
    loop = cfg.pretrain
    batches = Batches(data.train, normalise, cfg.dataset.augment, loop.augment, loop.batch_size, 1, seed, "bench")
    return objective, batches, cfg


def against_trainer(task: str, size: int, batch: int, steps: int, folder: Path) -> None:
    overrides = [f"dataset.image_size={size}", f"pretrain.batch_size={batch}", f"pretrain.steps={steps}"]
    data = load(compose(overrides))
    pictures = bench_trainer.images_of(data.train)
    held = ImageProcessor(data.mean, data.std, CPU)(data.val.some(len(data.val)))
    held_out = {"inputs": held, "rows": rng.BatchRandom(0, 0, 0, len(held), len(held))}

    def peer(objective: Any, cfg: Any, seed: int) -> tuple[float, nn.Module]:
        return bench_trainer.on_images(objective, data, pictures, cfg.pretrain, folder, seed)

    def losses(objective: Any, model: nn.Module) -> tuple[float, float]:
        loss, _ = objective(held_out)
        return float(loss.total / loss.n), bench_trainer.image_loss(model, objective, held_out)

    end_to_end(f"{task}, {size} px", "images", partial(setting, task, overrides), peer, losses, 3, folder)


def main(folder: Path) -> None:
    for task in ("mim", "simmim"):
        compare_steps(task, partial(setting, task, []), folder)
    mim, other = setting("mim", [], "fp32"), setting("simmim", [], "fp32")
    compare("a step of mim / a step of simmim, CPU time", lambda: by_hand(*mim, "fp32"), lambda: by_hand(*other, "fp32"))
    for size, batch, steps in ((28, 256, 40), (64, 256, 20)):
        for task in ("simmim", "mae"):
            against_trainer(task, size, batch, steps, folder)
