"""What recognises speech without being trained."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.downstream.recognition.head import padded
from ptmrun.downstream.recognition.split import TranscribedSplit
from ptmrun.log_mel import LogMel

STACK = 4  # spectra, 10 ms apart, that are averaged to a frame


def baseline_predictions(
    kind: str, data: Any, train: TranscribedSplit, features: Callable[[str, Any], np.ndarray]
) -> dict[str, Tensor]:
    """chance: the most frequent training transcript; raw: that of the training sound that is nearest to each test sound by
    dynamic time warping of log-mel spectra, each band of a sound with mean 0 (Sakoe and Chiba 1978)."""
    texts = train.right()
    if kind == "chance":
        chosen = [Counter(texts).most_common(1)[0][0]] * len(data.test)
    else:
        inputs, mel = data.processor(torch.device("cpu")), LogMel(data.rate, stack=STACK)
        known, asked = (spectra(split, inputs, mel) for split in (train, data.test))
        lengths = np.array([len(x) for x in known])
        whole = np.zeros((len(known), lengths.max(), mel.bands), dtype=np.float32)
        for row, x in zip(whole, known, strict=True):
            row[: len(x)] = x
        chosen = [texts[int(distances(x, whole, lengths).argmin())] for x in asked]
    return {"ids": padded([train.target(text).tolist() for text in chosen])}


def spectra(split: TranscribedSplit, inputs: Any, mel: LogMel) -> list[np.ndarray]:
    """Of each sound, [t, bands]."""
    found = []
    for waves in split.all():
        for frames, there in zip(*mel(inputs(waves)), strict=True):
            x = frames[there].unflatten(1, (mel.stack, mel.bands)).mean(1)
            found.append((x - x.mean(0)).numpy())
    return found


def distances(one: np.ndarray, others: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Of a sound [s, D] to others [N, t, D] of so many frames [N]: the cost of the cheapest alignment (Euclidean), a step being
    one frame of either or both, over the frames of both: [N]."""
    apart = np.sqrt(
        np.maximum((one**2).sum(1)[None, :, None] + (others**2).sum(2)[:, None] - 2 * np.einsum("sd,ntd->nst", one, others), 0)
    )
    cost = np.full((len(others), others.shape[1]), np.inf)
    for i in range(len(one)):
        before = np.pad(cost, ((0, 0), (1, 0)), constant_values=np.inf if i else 0.0)
        reach = np.minimum(before[:, 1:], before[:, :-1])
        now = np.empty_like(cost)
        last = np.full(len(others), np.inf)
        for j in range(others.shape[1]):
            last = np.minimum(reach[:, j], last) + apart[:, i, j]
            now[:, j] = last
        cost = now
    return cost[np.arange(len(others)), lengths - 1] / (len(one) + lengths)
