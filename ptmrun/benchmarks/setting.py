"""What `ptmrun stage=pretrain ...` would train, by its loop and by one written by hand."""

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.data.epochs import Epochs
from ptmrun.data.modality import LoadRequest
from ptmrun.stages.networks import family_of, modality_of, module_of, problem_of
from ptmrun.training import device, flops, optim
from ptmrun.training.loop import fit
from ptmrun.training.plan import Plan
from ptmrun.training.schedule import lr_at

CPU = torch.device("cpu")


def bf16_pays() -> bool:
    return device.known_bf16_speed(CPU, 1) > 1.4


def default_precision() -> str:
    """What device.precision=auto is on this processor."""
    return "bf16" if bf16_pays() else "fp32"


@functools.lru_cache(maxsize=1)
def read(words: tuple[str, ...]) -> tuple[Any, Any]:
    """(config, data) of a pretraining."""
    cfg = compose(["stage=pretrain", "device.workers=0", *words])
    request = LoadRequest(
        read=module_of(cfg, "dataset").read,
        cfg=cfg,
        family=family_of(cfg),
        problem=problem_of(cfg),
        folder=None,
        progress=lambda *_: None,
    )
    return cfg, modality_of(cfg).load(request)


@dataclass
class Setting:
    """An objective with its batches; each training goes on with the weights of the one before."""

    cfg: Any
    data: Any
    objective: Any
    batches: Epochs
    precision: str

    def inside(self, _: int = 0) -> contextlib.AbstractContextManager:
        return device.autocast(CPU, self.precision) if self.precision == "bf16" else contextlib.nullcontext()

    def flops(self) -> float:
        """Operations of a step."""
        return flops.of_steps(self.objective, self.batches.iterate(0, 1), self.inside)

    def fit(self, folder: Path) -> float:
        """CPU seconds of ptmrun's loop."""
        loop = self.cfg.pretrain
        plan = Plan(
            loop=loop,
            steps=loop.steps,
            seed=0,
            purpose="bench",
            samples=len(self.batches.split),
            batch_size=loop.batch_size,
            depth_of=lambda name: 0,
            depth=0,
            autocast=self.inside,
            file=folder / "state.safetensors",
            metric=lambda line: None,
            cut=lambda step: None,
            stop=lambda: None,
            show=lambda step, values: None,
        )
        plan.file.unlink(missing_ok=True)  # of an earlier training that was slow enough to be saved
        begun = time.process_time()
        fit(self.objective, self.batches, plan)
        return time.process_time() - begun

    def by_hand(self) -> float:
        """CPU seconds of the same work."""
        loop = self.cfg.pretrain
        begun = time.process_time()
        optimizer = optim.build(optim.groups(self.objective, loop, lambda name: 0, 0), loop)
        parameters = list(self.objective.parameters())
        for step, [batch] in enumerate(self.batches.iterate(0, loop.steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, loop.steps, loop)
            with self.inside():
                loss, _ = self.objective(batch)
            (loss.total / loss.n).backward()
            nn.utils.clip_grad_norm_(parameters, loop.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.process_time() - begun


def setting(words: Sequence[str], precision: str = "fp32", seed: int = 0) -> Setting:
    cfg, data = read(tuple(words))
    processor, family, loop = data.processor(CPU), family_of(cfg), cfg.pretrain
    changes, _ = family.resolve(cfg.model, processor.spec)
    rng.seed_everything(seed, "bench")
    encoder = family.build(cfg.model.model_copy(update=changes), processor.spec, device.attention(CPU, precision))
    objective = module_of(cfg, "task").Objective(encoder, cfg.task)
    batches = data.batches(objective, data.corpus, cfg, loop, loop.batch_size, seed, "bench", processor)
    return Setting(cfg, data, objective, batches, precision)
