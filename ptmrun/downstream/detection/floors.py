"""What needs no network. That nothing is found scores 0."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.downstream.base import Features
from ptmrun.downstream.detection.head import MOST, packed
from ptmrun.downstream.detection.split import BoxedSplit


def baseline_predictions(kind: str, data: Any, train: BoxedSplit, features: Features) -> dict[str, Tensor]:
    """chance: the same boxes in each image, the centres of clusters of the training boxes of each class, the most frequent first;
    raw: the boxes of the training image whose pixels are nearest (Euclidean)."""
    if kind == "chance":
        one = mean_boxes(train, len(data.classes))
        return packed([one] * len(data.test))
    pixels, asked, _ = data.raw("raw", train)
    known = (pixels**2).sum(1)
    found = []
    for row in asked:
        nearest = int((known - 2 * pixels @ row).argmin())
        corners, classes, ignored = train.boxes(nearest)
        own = ~ignored
        found.append((torch.from_numpy(corners[own]), torch.ones(int(own.sum())), torch.from_numpy(classes[own])))
    return packed(found)


def mean_boxes(train: BoxedSplit, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes [n, 4], scores, classes), at most MOST, whose scores are the shares of the training boxes in their clusters."""
    from sklearn.cluster import KMeans

    shown = [train.boxes(i) for i in range(len(train))]
    corners = np.concatenate([x[~ignored] for x, _, ignored in shown])
    kinds = np.concatenate([k[~ignored] for _, k, ignored in shown])
    parts = []
    for kind in np.unique(kinds):
        own = corners[kinds == kind]
        count = min(len(np.unique(own, axis=0)), max(1, MOST // classes))
        model = KMeans(count, n_init=1, random_state=0).fit(own)
        shares = np.bincount(model.labels_, minlength=count) / len(corners)
        parts.append((model.cluster_centers_, shares, np.full(count, kind)))
    boxes, scores, names = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")[:MOST]
    return torch.from_numpy(boxes[order]).float(), torch.from_numpy(scores[order]).float(), torch.from_numpy(names[order]).long()
