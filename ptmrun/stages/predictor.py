"""A run's networks without its data set, on any device: for all that uses a model after it was trained."""

from dataclasses import dataclass
from typing import Any

import torch

from ptmrun.config import parsing
from ptmrun.config.schema import Config
from ptmrun.downstream.base import Model, Predictions
from ptmrun.errors import UserError
from ptmrun.models.base import Encoder
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, EXAMPLES, PROCESSOR, START, source
from ptmrun.stages.networks import Networks, family_of, modality_of
from ptmrun.stages.trials import Trial, label_counts, load_finetuned, trials, weights_file
from ptmrun.storage import tensor_files
from ptmrun.training import device

NOISE = 8  # samples


def networks_of(run: Run) -> Networks:
    """Raises UserError when the run has not come to know its data yet."""
    cfg = config_file.load(run.path("config.yaml"))
    facts = run.manifest.get("data", {})
    if not facts.get("fingerprint"):
        raise UserError(f"{run.folder}: has not read its data yet; go on with: ptmrun resume {run.typed}")
    if not device.available(cfg.device.name):
        cfg = parsing.replace(cfg, device__name="auto", device__precision="fp32")
    cfg, where, _ = device.resolve(cfg)
    family = family_of(cfg)
    processor = modality_of(cfg).processor(cfg, facts, source(run, cfg, PROCESSOR), family, where)
    changes, _ = family.resolve(cfg.model, processor.spec)
    cfg = parsing.replace(cfg, **{f"model__{key}": value for key, value in changes.items()})
    return Networks(run, cfg, where, processor, classes_of(run, cfg), facts)


def best_trial(cfg: Config) -> Trial:
    """The first repeat with most labels, which stands for the run."""
    return trials(cfg, "tuned", label_counts(cfg)[-1])[0]


def classes_of(run: Run, cfg: Config) -> list[str]:
    """As the fine-tuned weights have them, or the data; in runs of older versions, as they stand in results.json."""
    path = source(run, cfg, weights_file(best_trial(cfg)))
    state = tensor_files.load(path)[1] if path else {}
    known = state.get("classes", run.manifest.get("data", {}).get("classes"))
    if known is None:
        known = list(((run.results() or {}).get("metrics") or {}).get("per_class") or {})
    if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
        raise UserError(f"{path or run.folder}: its names of classes are not what ptmrun writes there; refused")
    return known


@dataclass
class Predictor:
    """A run's model, with its processor and classes. model: the fine-tuned one; None where nothing was fine-tuned."""

    networks: Networks
    model: Model | None

    @classmethod
    def load(cls, run: Run) -> "Predictor":
        """Raises UserError when the run has trained nothing yet."""
        cfg = config_file.load(run.path("config.yaml"))
        fine_tuned = source(run, cfg, weights_file(best_trial(cfg))) is not None
        if not fine_tuned and source(run, cfg, ENCODER) is None and source(run, cfg, START) is None:
            raise UserError(f"{run.folder}: has trained nothing yet that could be used")
        networks = networks_of(run)
        return cls(networks, load_finetuned(networks, best_trial(networks.cfg)).eval() if fine_tuned else None)

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder if self.model else self.networks.starting_encoder().eval()

    @torch.no_grad()
    def predict(self, raw: list[Any]) -> Predictions:
        """What the fine-tuned model says of pictures, strings ...; see downstream.base.Model.predict."""
        if self.model is None:
            raise UserError(f"{self.networks.run.folder}: nothing was fine-tuned; stage=finetune first")
        processor = self.networks.processor
        with self.networks.autocast():
            return self.model.predict([processor(processor.read(raw))])

    def examples(self) -> tuple[Any, str]:
        """A few inputs, and what they are: test samples of the run, or noise where it has saved none."""
        processor = self.networks.processor
        if (path := source(self.networks.run, self.networks.cfg, EXAMPLES)) is None:
            return processor(processor.noise(NOISE)), f"{NOISE} samples of noise"
        tensors = tensor_files.load(path)[0]
        count = len(next(iter(tensors.values()), ()))
        return processor(processor.unpacked(tensors)), f"{count} test samples"
