"""How good frozen features are: k nearest neighbours, a linear classifier, their spread."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from ptmrun.downstream.classical import USUAL, logistic, neighbours
from ptmrun.models.modes import eval_mode, has_dropout
from ptmrun.reports.curves import LAYER

MOST = 4000  # training images that a probe uses, evenly spaced
MOST_VALUE = 1e6  # of a feature: what a training that diverges gives can be probed too, and scores what it is worth


@torch.no_grad()
def features(
    encoder: Any,
    split: Any,
    inputs: Callable[[Any], Any],
    autocast: Callable[[], Any],
    of: str = "features",
    dropout: bool = False,
    look: Callable[[Any, Any], torch.Tensor] | None = None,
) -> np.ndarray:
    """Frozen features of a split, float32 [N, D], by the encoder's method `of`, or by look(encoder, inputs); with `dropout` some
    units are left out."""
    split, place = split.sorted_by_length()
    with eval_mode(encoder), autocast():
        for module in encoder.modules() if dropout else ():
            if has_dropout(module):
                module.training = True
        see = partial(look, encoder) if look else getattr(encoder, of)
        features = [see(inputs(samples)).float().cpu() for samples in split.all()]
    return torch.cat(features)[place].numpy()


def probe(encoder: Any, train: Any, held: Any, inputs: Callable[[Any], Any], autocast: Callable[[], Any]) -> dict[str, float]:
    """How spread the features of a held-out part of the training split are, from at most MOST images; where each has one label
    also the accuracy of both classifiers on it, trained on at most MOST images.

    An encoder whose features may come from any layer takes them, from here on, from the one with the best linear probe.
    """
    held = held.evenly_spaced(MOST)
    layered = encoder.layered

    def look(split: Any) -> np.ndarray:
        """[N, layers, D]"""
        x = features(encoder, split, inputs, autocast, "layer_features" if layered else "features")
        return np.nan_to_num(x if layered else x[:, None]).clip(-MOST_VALUE, MOST_VALUE)

    def spread(z: np.ndarray) -> dict[str, float]:
        return {"effective_rank": effective_rank(z), "feature_std": feature_std(z)}

    z = look(held)
    if train.labels is None or held.labels is None or train.labels.ndim > 1 or len(train.labels.unique()) < 2:
        return spread(z[:, encoder.layer - 1 if layered else 0])
    train = train.evenly_spaced(MOST)
    x, y, truth = look(train), train.labels.numpy(), held.labels.numpy()
    linear = [float((np.unique(y)[logistic(x[:, i], y, z[:, i], USUAL).argmax(1)] == truth).mean()) for i in range(x.shape[1])]
    layers: dict[str, float] = {}
    if layered:
        encoder.choose(linear)
        layers = {f"{LAYER}{i}": score for i, score in enumerate(linear, 1)} | {"layer": encoder.layer}
    used = encoder.layer - 1 if layered else 0
    knn = float((neighbours(x[:, used], y, z[:, used]) == truth).mean())
    return spread(z[:, used]) | {"probe_knn": knn, "probe_linear": linear[used]} | layers


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy of the singular values' shares) of centred features [N, D] (RankMe: Garrido et al. 2023, arXiv:2210.02885;
    Roy and Vetterli 2007): from 1, all on a line, to min(N, D)."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False).astype(np.float64)
    if values.sum() == 0:
        return 1.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def feature_std(x: np.ndarray) -> float:
    """Standard deviation of features scaled to length 1, times sqrt(D), mean over columns (Chen and He 2021, arXiv:2011.10566,
    figure 2): 0 when all are the same, 1 when they spread over all directions."""
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)
    return float(unit.std(0).mean() * np.sqrt(x.shape[1]))


def collapse(values: dict[str, float], before: dict[str, float], count: int) -> str | None:
    """What speaks for features that collapse, beside those of the untrained encoder; None when nothing does. `count` images."""
    signs = []
    if values["effective_rank"] < max(2.0, 0.25 * before["effective_rank"]):
        signs.append(f"effective rank {values['effective_rank']:.1f} (untrained {before['effective_rank']:.1f})")
    if values["feature_std"] < 0.25 * before["feature_std"]:
        signs.append(f"standard deviation of the features {values['feature_std']:.3f} (untrained {before['feature_std']:.3f})")
    if (now := values.get("probe_knn")) is not None and now < before["probe_knn"] - 2 * (0.5 / count) ** 0.5:
        signs.append(f"k-NN {now:.3f}, below the untrained encoder's {before['probe_knn']:.3f}")
    return ", ".join(signs) or None


def describe(values: dict[str, float]) -> str:
    parts = [f"effective rank {values['effective_rank']:.1f}"]
    if "probe_knn" in values:
        parts = [f"k-NN {values['probe_knn']:.3f}", f"linear probe {values['probe_linear']:.3f}", *parts]
    if "layer" in values:
        parts.append(f"layer {values['layer']:.0f}")
    return ", ".join(parts)
