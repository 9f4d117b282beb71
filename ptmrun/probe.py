"""How good frozen features are: k nearest neighbours and a linear classifier."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.data.splits import Split

MOST = 4000  # training images that a probe uses, evenly spaced
MOST_VALUE = 1e6  # of a feature: what a training that diverges gives can be probed too, and scores what it is worth


@torch.no_grad()
def features(encoder: Any, split: Split, normalise: Callable[[Tensor], Tensor], autocast: Callable[[], Any]) -> np.ndarray:
    """Frozen features of a split, float32 [N, D]."""
    encoder.eval()
    with autocast():
        found = [encoder.features(normalise(images)).float().cpu() for images in split.all()]
    encoder.train()
    return torch.cat(found).numpy()


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float = 0.1, standardise: bool = True) -> np.ndarray:
    """Log-probabilities [N, classes seen] of scikit-learn's logistic regression, on standardised columns or as they are."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = (train.mean(0), train.std(0) + 1e-6) if standardise else (0.0, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 iterations are enough to compare features
        model = LogisticRegression(C=c, max_iter=300).fit((train - mean) / std, labels)
    return model.predict_log_proba((test - mean) / std)


def neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int = 10) -> np.ndarray:
    """Classes [N] by a vote of the k nearest (Euclidean, standardised columns)."""
    from sklearn.neighbors import KNeighborsClassifier

    mean, std = train.mean(0), train.std(0) + 1e-6
    model = KNeighborsClassifier(min(k, len(train))).fit((train - mean) / std, labels)
    return model.predict((test - mean) / std)


def probe(
    encoder: Any, train: Split, held: Split, normalise: Callable[[Tensor], Tensor], autocast: Callable[[], Any]
) -> dict[str, float]:
    """Accuracy of both on a held-out part of the training split, from at most MOST training images."""
    assert train.labels is not None
    assert held.labels is not None
    train = train.subset(torch.linspace(0, len(train) - 1, min(MOST, len(train))).long())
    held = held.subset(torch.linspace(0, len(held) - 1, min(MOST, len(held))).long())
    x, z = (np.nan_to_num(features(encoder, s, normalise, autocast)).clip(-MOST_VALUE, MOST_VALUE) for s in (train, held))
    y, truth = train.labels.numpy(), held.labels.numpy()  # type: ignore[union-attr]
    linear = np.unique(y)[logistic(x, y, z).argmax(1)]
    return {"probe_knn": float((neighbours(x, y, z) == truth).mean()), "probe_linear": float((linear == truth).mean())}
