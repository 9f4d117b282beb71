"""A run's networks without its data set, on any device: for all that uses a model after it was trained."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptmrun.config import choices, parsing, specs
from ptmrun.config.schema import Config
from ptmrun.data.modality import Unreadable
from ptmrun.downstream.base import Model
from ptmrun.errors import UserError
from ptmrun.models.base import Encoder
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, EXAMPLES, PROCESSOR, REFERENCE, START, load_weights, source
from ptmrun.stages import probe
from ptmrun.stages.networks import Networks, family_of, modality_of
from ptmrun.stages.novelty import Reference
from ptmrun.stages.trials import best_trial, label_counts, load_finetuned, predict_split, trials, weights_file
from ptmrun.storage import tensor_files
from ptmrun.training import device

NOISE = 8  # samples


def networks_of(run: Run) -> Networks:
    """Raises UserError when the run has not come to know its data yet."""
    cfg = config_file.load(run.sound("config.yaml"))
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


def pretrained(run: Run, needed: set[str], what: str) -> tuple[Networks, Encoder]:
    """A run's networks, and its pretrained model. Raises UserError where there is none, or where the model does not provide what
    is `needed`: `what` it does not."""
    cfg: Any = config_file.load(run.sound("config.yaml"))
    fits = models(needed)
    if cfg.model.name not in fits:
        raise UserError(f"{run.folder}: model={cfg.model.name} {what}; there is: model={', '.join(fits)}")
    ready = cfg.stage not in ("all", "pretrain") or run.path(ENCODER).exists()
    if getattr(cfg.model, "length", None) == "auto" or not ready:
        raise UserError(f"{run.folder}: has not pretrained its model yet; go on with: ptmrun resume {run.typed}")
    networks = networks_of(run)
    encoder = networks.encoder()
    if not load_weights(encoder, run, cfg):
        raise UserError(f"{run.folder}: its model was never pretrained; start from one that was: init=RUN")
    return networks, encoder.eval()


def models(needed: set[str]) -> list[str]:
    """Those that provide it."""
    return [name for name in choices.names("model") if specs.spec("model", name).provides >= needed]


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
    """A run's model, with its processor and classes. model: the fine-tuned one; None where nothing was fine-tuned. others: those
    of the other repeats, where all are asked. reference: by which a sample is told to be unlike the training data, if any."""

    networks: Networks
    model: Model | None
    others: list[Model] = field(default_factory=list)
    reference: Reference | None = None

    @classmethod
    def load(cls, run: Run, every_repeat: bool = False) -> "Predictor":
        """Raises UserError when the run has trained nothing yet, and where answers of repeats cannot be averaged."""
        cfg = config_file.load(run.sound("config.yaml"))
        weights = source(run, cfg, weights_file(best_trial(cfg)))
        if weights is None and source(run, cfg, ENCODER) is None and source(run, cfg, START) is None:
            raise UserError(f"{run.folder}: has trained nothing yet that could be used")
        networks = networks_of(run)
        if weights is None and networks.problem.trains:
            return cls(networks, None)
        first, *more = trials(networks.cfg, "tuned", label_counts(networks.cfg)[-1])
        if every_repeat and more and networks.problem.averaged is None:
            raise UserError(f"repeats=all: answers of downstream={networks.cfg.downstream.name} cannot be averaged; leave it out")
        others = [load_finetuned(networks, trial).eval() for trial in more] if every_repeat else []
        beside = weights.parents[1] / Path(REFERENCE).name if weights else None  # of these weights, not of others it began with
        reference = Reference.load(beside) if beside and beside.exists() else None
        return cls(networks, load_finetuned(networks, first).eval(), others, reference)

    @functools.cached_property
    def pretrained(self) -> Encoder:
        """The encoder as fine-tuning began with it."""
        return self.networks.starting_encoder().eval()

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder if self.model else self.pretrained

    def split(self, raw: list[Any]) -> Any:
        """What the processor opened, as a split without answers."""
        unlabelled = self.networks.problem.unlabelled
        return unlabelled(raw, self.networks.problem_setup) if unlabelled else self.networks.processor.split(raw)

    def opened(
        self, raw: list[Any], then: Callable[[list[Any]], Iterable[Any]], opener: Callable[[list[Any]], list[Any]] | None = None
    ) -> list[Any]:
        """What `then` gives for each of those that can be read, by the processor or another opener; of the others, why not:
        Unreadable."""
        fresh = [x for x in raw if not isinstance(x, Unreadable)]
        opened = iter((opener or self.networks.processor.opened)(fresh) if fresh else [])
        every = [x if isinstance(x, Unreadable) else next(opened) for x in raw]
        good = [x for x in every if not isinstance(x, Unreadable)]
        results = iter(then(good) if good else [])
        return [x if isinstance(x, Unreadable) else next(results) for x in every]

    def predict(self, raw: list[Any], top: int = 5) -> list[dict[str, Any]]:
        """What the fine-tuned model says of each of these, pictures, paths, texts ...: see Problem.answer_rows; {"error": why} of
        what cannot be read. unlike: how many of a hundred held-out samples are more like the training data."""
        own, setup = self.networks.problem.opened, self.networks.problem_setup
        answers = self.opened(raw, partial(self.rows, top=top), (lambda x: own(x, setup)) if own else None)
        return [{"error": x.reason} if isinstance(x, Unreadable) else x for x in answers]

    @torch.no_grad()
    def rows(self, raw: list[Any], top: int) -> list[dict[str, Any]]:
        networks, problem, model = self.networks, self.networks.problem, self.model
        if model is None:
            raise UserError(f"{networks.run.folder}: nothing was fine-tuned; stage=finetune first")
        if problem.answer_rows is None:
            raise UserError(f"downstream={networks.cfg.downstream.name}: does not say how its answers are shown")
        split, unlike = self.split(raw), None
        with networks.autocast():
            if self.reference and model.linear_probe:
                seen = torch.from_numpy(probe.features(model.encoder, split, networks.processor, networks.autocast))
                if seen.shape[1] != self.reference.train.shape[1]:
                    raise UserError(f"{REFERENCE}: holds features of another model; refused")
                predictions, unlike = model.classified(seen.to(networks.device)), self.reference.percentiles(seen).tolist()
            else:
                predictions = predict_split(networks, model, split)
            if self.others:
                assert problem.averaged is not None
                every = [predictions, *(predict_split(networks, other, split) for other in self.others)]
                predictions = problem.averaged(every)
        rows = problem.answer_rows(predictions, split, networks.classes, top)
        return rows if unlike is None else [{**row, "unlike": round(share, 1)} for row, share in zip(rows, unlike, strict=True)]

    def embed(self, raw: list[Any], pretrained: bool = False, parts: bool = False) -> list[np.ndarray | Unreadable]:
        """Features of each of these, float32 [D], or of its `parts` [n, D] (patches, places of the map, tokens), by the
        fine-tuned encoder, or as it was before; Unreadable in the place of what cannot be read."""
        encoder = self.pretrained if pretrained else self.encoder
        return self.opened(raw, partial(self.features, encoder=encoder, parts=parts))

    @torch.no_grad()
    def features(self, raw: list[Any], encoder: Encoder, parts: bool) -> list[np.ndarray]:
        processor = self.networks.processor
        split = processor.split(raw)
        if not parts:
            return list(probe.features(encoder, split, processor, self.networks.autocast))
        ordered, place = split.sorted_by_length()
        each: list[np.ndarray] = []
        with self.networks.autocast():
            for samples in ordered.all():
                inputs = processor(samples)
                values, mask = encoder.local_features(inputs).float().cpu(), encoder.local_mask(inputs)
                rows = values if mask is None else [v[m] for v, m in zip(values, mask.cpu(), strict=True)]
                each += [row.numpy() for row in rows]
        return [each[i] for i in torch.arange(len(each))[place].tolist()]

    def examples(self) -> tuple[Any, str]:
        """A few inputs, and what they are: test samples of the run, or noise where it has saved none."""
        processor = self.networks.processor
        if (path := source(self.networks.run, self.networks.cfg, EXAMPLES)) is None:
            return processor(processor.noise(NOISE)), f"{NOISE} samples of noise"
        tensors = tensor_files.load(path)[0]
        count = len(next(iter(tensors.values()), ()))
        return processor(processor.unpacked(tensors)), f"{count} test samples"
