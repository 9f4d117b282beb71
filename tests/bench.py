"""`make bench`: ratios from interleaved runs in one process, one thread, CPU time. Prints; asserts nothing.

1. The loop against a hand-written PyTorch loop doing the same work (same model, batches, optimizer, clipping, schedule).
2. bfloat16 against float32 for the same steps on this processor.
3. End to end, data included: transformers' Trainer (bench_trainer.py) against `train.fit` by defaults, on the same model sizes,
   images, batch and optimizer settings; and the loss of both on the same held-out images with the same patches hidden.
4. CPU seconds of the command line: help, a mistake.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bench_trainer
import torch
from torch import nn

from ptmrun import device, optim, rng, train
from ptmrun.compose import compose
from ptmrun.data import images
from ptmrun.data.batches import Batches, Normalise
from ptmrun.data.sources import packaged
from ptmrun.models import vit
from ptmrun.objectives import mae, simmim

STEPS, PAIRS = 20, 7


def load(cfg):
    return images.load(packaged.read, cfg.dataset, 0, lambda *_: None)


def setting(task: str, precision: str, *overrides: str, seed: int = 0):
    """(objective, batches, config) of `ptmrun task=...` on the built-in digits."""
    cfg = compose([f"task={task}", f"pretrain.steps={STEPS}", *overrides])
    data = load(cfg)
    changes, _ = vit.resolve(cfg.model, data.size, data.channels)
    cpu = torch.device("cpu")
    options = cfg.model.model_copy(update=changes)
    rng.seed_everything(seed, "bench")
    encoder = vit.build(options, data.size, data.channels, device.attention(cpu, precision))
    objective = {"mim": mae, "mae": mae, "simmim": simmim}[task].Objective(encoder, cfg.task)
    normalise = Normalise(data.mean, data.std, cpu)
    loop = cfg.pretrain
    batches = Batches(data.train, normalise, cfg.dataset.augment, loop.augment, loop.batch_size, 1, seed, "bench")
    return objective, batches, cfg


def ours(objective, batches, cfg, precision: str, folder: Path) -> float:
    plan = train.Plan(
        loop=cfg.pretrain,
        steps=cfg.pretrain.steps,
        seed=0,
        purpose="bench",
        samples=3600,
        batch_size=cfg.pretrain.batch_size,
        depth_of=lambda name: 0,
        depth=0,
        autocast=lambda: device.autocast(torch.device("cpu"), precision),
        file=folder / "state.safetensors",
        metric=lambda line: None,
        cut=lambda step: None,
        stop=lambda: None,
        show=lambda step, values: None,
    )
    plan.file.unlink(missing_ok=True)  # of an earlier run that was slow enough to be saved
    start = time.process_time()
    train.fit(objective, batches, plan)
    return time.process_time() - start


def by_hand(objective, batches, cfg, precision: str) -> float:
    loop = cfg.pretrain
    start = time.process_time()
    optimizer = optim.build(optim.groups(objective, loop, lambda name: 0, 0), loop)
    parameters = list(objective.parameters())
    context = device.autocast(torch.device("cpu"), precision) if precision == "bf16" else contextlib.nullcontext()
    for step, [batch] in enumerate(batches.iterate(0, STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = optim.lr_at(step, STEPS, loop)
        with context:
            loss, _ = objective(batch)
        (loss.total / loss.n).backward()
        nn.utils.clip_grad_norm_(parameters, loop.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.process_time() - start


def compare(name: str, a, b) -> None:
    """Runs a and b in turn; prints the median of the paired ratios and their range."""
    a(), b()
    show(name, [(a(), b()) if i % 2 else (b(), a())[::-1] for i in range(PAIRS)])


def show(name: str, pairs: list[tuple[float, float]]) -> None:
    ratios = sorted(x / y for x, y in pairs)
    print(f"{name:<58} {statistics.median(ratios):.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)", flush=True)


def end_to_end(task: str, size: int, batch: int, steps: int, pairs: int, folder: Path) -> None:
    """Trains from scratch with transformers' Trainer and with ours in turn, a seed a pair."""
    cpu = torch.device("cpu")
    precision = "bf16" if device.known_bf16_speed(cpu, 1) > 1.4 else "fp32"
    overrides = [f"dataset.image_size={size}", f"pretrain.batch_size={batch}", f"pretrain.steps={steps}"]
    data = load(compose(overrides))
    images = bench_trainer.images_of(data.train)
    held = Normalise(data.mean, data.std, cpu)(data.val.some(len(data.val)))
    held_out = {"inputs": held, "rows": rng.Rows(0, 0, 0, len(held), len(held))}
    times, losses = [], []
    for seed in range(pairs):
        ours_first = seed % 2
        objective, batches, cfg = setting(task, precision, *overrides, seed=seed)
        mine = ours(objective, batches, cfg, precision, folder) if ours_first else 0.0
        torch.use_deterministic_algorithms(False)
        their, model = bench_trainer.train(objective, data, images, cfg.pretrain, steps, folder, seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        mine = mine or ours(objective, batches, cfg, precision, folder)
        times.append((their, mine))
        with torch.no_grad():
            loss, _ = objective.eval()(held_out)
        losses.append((float(loss.total / loss.n), bench_trainer.loss(model, objective, held_out)))
    show(f"{task}, {size} px, batch {batch}: Trainer / ptmrun ({precision}), CPU time", times)
    rows = [" ".join(f"{x:.3f}" for x in side) for side in zip(*losses, strict=True)]
    print(f"  held-out loss after {batch * steps} images: ptmrun {rows[0]}; Trainer {rows[1]}", flush=True)


def main() -> None:
    device.setup(1)
    with tempfile.TemporaryDirectory() as folder:
        for task in ("mim", "simmim"):
            model = setting(task, "fp32")
            compare(
                f"{task}: the loop / a hand-written loop, CPU time",
                lambda m=model: ours(*m, "fp32", Path(folder)),
                lambda m=model: by_hand(*m, "fp32"),
            )
            low = setting(task, "bf16")
            compare(
                f"{task}: bf16 / fp32 steps, CPU time", lambda m=low: by_hand(*m, "bf16"), lambda m=model: by_hand(*m, "fp32")
            )
        mim, simmim_ = setting("mim", "fp32"), setting("simmim", "fp32")
        compare("a step of mim / a step of simmim, CPU time", lambda: by_hand(*mim, "fp32"), lambda: by_hand(*simmim_, "fp32"))
        for size, batch, steps in ((28, 256, 40), (64, 64, 20)):
            for task in ("simmim", "mae"):
                end_to_end(task, size, batch, steps, 3, Path(folder))
    for argv in (["--help"], ["model=vitt"]):
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, "-m", "ptmrun", *argv], capture_output=True, check=False)
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        title = f"ptmrun {' '.join(argv)}: CPU seconds"
        print(f"{title:<58} {statistics.median(times):.2f}  ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
