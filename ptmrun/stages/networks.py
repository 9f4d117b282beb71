"""How a run makes its networks: encoders, objectives, fine-tuned models. No data set is needed for that."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.config import specs
from ptmrun.config.schema import Config
from ptmrun.data.modality import Modality, Processor
from ptmrun.downstream.base import Problem, ProblemSetup
from ptmrun.errors import UserError
from ptmrun.models.base import Encoder, Family
from ptmrun.models.recompute import blocks, recompute
from ptmrun.objectives.base import Objective
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, load_weights, source
from ptmrun.training import device


@dataclass
class Networks:
    """classes: names, in the order of the labels. facts: what the manifest says of the data."""

    run: Run
    cfg: Any  # a Config, or one whose reads are noted
    device: torch.device
    processor: Processor
    classes: list[str]
    facts: dict[str, Any]

    @property
    def family(self) -> Family:
        return family_of(self.cfg)

    @property
    def problem(self) -> Problem:
        return problem_of(self.cfg)

    @property
    def problem_setup(self) -> ProblemSetup:
        return ProblemSetup(self.classes, self.cfg.downstream, self.processor, self.facts)

    def autocast(self) -> Any:
        return device.autocast(self.device, self.cfg.device.precision)

    def encoder(self, purpose: str = "encoder", seed: int | None = None) -> Encoder:
        """A new encoder with the initial weights of a seed (the run's own unless given)."""
        rng.seed_everything(self.cfg.seed if seed is None else seed, purpose)
        attention = device.attention(self.device, self.cfg.device.precision)
        encoder = self.family.build(self.cfg.model, self.processor.spec, attention)
        encoder.to(self.device)
        if self.cfg.device.recompute:
            recompute(encoder)
        for key, what in {"recompute": "computed again", "shard": "taken apart"}.items():
            if getattr(self.cfg.device, key) and not blocks(encoder):
                why = f"model={self.cfg.model.name} has no blocks of transformers' that could be {what}"
                raise UserError(f"device.{key}=true: {why}; leave it out")
        if encoder.learns_buffers:
            encoder.load_state_dict(self.buffers(encoder), strict=False)
        return encoder

    def buffers(self, encoder: Encoder) -> dict[str, Tensor]:
        """Those of an encoder that come from training samples: as the run, or the one that it starts from, has saved them."""
        folder = source(self.run, self.cfg, ENCODER)
        return encoder.saved_buffers(folder) if folder else {}

    def starting_encoder(self) -> Encoder:
        """What fine-tuning starts from: this run's pretrained encoder, the parent's, one from outside, or a random one."""
        encoder = self.encoder()
        load_weights(encoder, self.run, self.cfg)
        return encoder

    def objective(self) -> Objective:
        """The task's objective with its initial heads, on `starting_encoder`."""
        encoder = self.starting_encoder()
        rng.seed_everything(self.cfg.seed, "objective")
        known = {"classes": len(self.classes)} if "labels" in specs.spec("task", self.cfg.task.name).needs else {}
        objective = module_of(self.cfg, "task").Objective(encoder, self.cfg.task, **known).to(self.device)
        if self.cfg.device.recompute:
            recompute(objective)
        return objective


def module_of(cfg: Config, group: str) -> Any:
    """The module that the choice of a group names (the installed YAML says which, not the saved config)."""
    name = specs.spec(group, getattr(cfg, group).name).module
    assert name is not None
    return importlib.import_module(name)


def family_of(cfg: Config) -> Family:
    family = module_of(cfg, "model").FAMILY
    return family.of(cfg.model) if family.of else family


def problem_of(cfg: Config) -> Problem:
    return module_of(cfg, "downstream").PROBLEM


def modality_of(cfg: Config) -> Modality:
    package = specs.package_of(specs.kind(cfg.dataset.name))
    assert package is not None
    return importlib.import_module(package).MODALITY
