"""What a report shows of masks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.data.modality import Picture
from ptmrun.downstream.segmentation.metrics import per_sample_scores
from ptmrun.downstream.segmentation.split import MaskedSplit

SHOWN = 4  # of the best images, and of the worst


def pictures(predictions: dict[str, Tensor], split: MaskedSplit, classes: list[str], processor: Any) -> list[Picture]:
    """The test images that are segmented best and worst."""
    scores = per_sample_scores(predictions, split)
    order = np.argsort(-scores, kind="stable")
    chosen = np.concatenate([order[:SHOWN], order[max(SHOWN, len(order) - SHOWN) :]]).tolist()
    rows = torch.tensor(chosen)
    images = next(split.batches([rows])).float() / 255
    truth, guess = split.answers(rows).numbers, predictions["masks"][rows]
    tops = [f"{scores[i]:.3f}" for i in chosen]
    return [Picture("masks", ("segmentation", images, truth, guess, classes, split.palette, tops))]
