"""The baselines without a training loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ptmrun.downstream.base import Model, Problem
from ptmrun.models.base import Encoder
from ptmrun.stages.context import Context
from ptmrun.stages.trials import FROZEN, Trial, chosen_labels, saved_predictions, trials, tune
from ptmrun.training.signals import check_stop

MOST = {"raw_svm": 4000}  # training samples of what takes the square of their number


class FeatureCache:
    """The features that methods without a training loop see. Those of the test split are made once."""

    def __init__(self, context: Context):
        self.context = context
        self.encoders: dict[str, Any] = {}
        self.tests: dict[str, np.ndarray] = {}

    def of(self, kind: str, split: Any, look: Callable[[Any, Any], Tensor] | None = None) -> np.ndarray:
        """[N, D]; kind: random_frozen or frozen. Or [N, ...], what `look` sees of (encoder, inputs)."""
        if look:
            return self.context.features(self.encoder(kind), split, look=look)
        if split is self.context.data.test and kind in self.tests:
            return self.tests[kind]
        features = self.context.features(self.encoder(kind), split)
        if split is self.context.data.test:
            self.tests[kind] = features
        return features

    def encoder(self, kind: str) -> Encoder:
        if kind not in self.encoders:
            self.encoders[kind] = self.context.starting_encoder() if kind == "frozen" else self.untrained()
        return self.encoders[kind]

    def untrained(self) -> Encoder:
        encoder = self.context.encoder("scratch")
        self.context.recompute_statistics(encoder, self.context.data.train)
        return encoder


def frozen_head(context: Context, trial: Trial) -> Model:
    """A model whose head alone was trained, for as many steps as fine-tuning takes."""
    with context.run.clock(f"baseline/{trial.name}"):
        return tune(context, trial)


def baseline_predictions(
    context: Context, problem: Problem, kind: str, labels: int | None, inputs: FeatureCache
) -> list[dict[str, Tensor]]:
    """Predictions for the test split of a baseline without a training loop, once a repeat where the labels differ."""
    if kind in FROZEN and problem.frozen_heads:
        trial = trials(context.cfg, kind, labels)[0]
        return [saved_predictions(context, trial.name, context.data.test, lambda: (frozen_head(context, trial), {}))[0]]
    predictions: list[dict[str, Tensor]] = []
    for trial in trials(context.cfg, "tuned", labels)[: 1 if kind == "chance" else None]:
        chosen = chosen_labels(context, trial)
        split = chosen.evenly_spaced(min(problem.max_baseline_samples, MOST.get(kind, problem.max_baseline_samples)))
        if len(split) < len(chosen) and not predictions:  # once, not a repeat
            rows = f"{len(split):,} of these {len(chosen):,} training {context.data.noun}"
            context.run.say(f"{kind}: sees {rows}, evenly spaced")
        predictions.append(problem.baseline_predictions(kind, context.data, split, inputs.of))
        check_stop(context.stop)
    return predictions
