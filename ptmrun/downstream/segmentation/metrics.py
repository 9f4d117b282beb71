"""How right masks are. By the pixels that count, those that are IGNORED left out."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.data.sources import IGNORED
from ptmrun.downstream.segmentation.split import MaskedSplit

AT_EDGE = 0.0075  # of the diagonal, by which an edge may be off (Csurka et al. 2013)
MOST_EDGES = 32  # classes of which the edges are compared


def valid(predictions: dict[str, Tensor], split: MaskedSplit, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    masks, sure = predictions.get("masks", torch.empty(0)), predictions.get("confidence", torch.ones(len(split)))
    fits = masks.dtype == torch.uint8 and masks.shape == (len(split), split.side, split.side) and len(sure) == len(split)
    return fits and int(masks.max()) < len(classes)


def confusions(predictions: dict[str, Tensor], split: MaskedSplit) -> Tensor:
    """Pixels of each image by true class (rows) and predicted class, int64 [N, K, K]."""
    k, parts, start = len(split.classes), [], 0
    for truth in split.right():
        guess = predictions["masks"][start : start + len(truth)].long()
        image = torch.arange(len(truth))[:, None, None].expand_as(guess)
        known = truth != IGNORED
        places = ((image * k + truth.long()) * k + guess)[known]
        parts.append(torch.bincount(places, minlength=len(truth) * k * k).view(-1, k, k))
        start += len(truth)
    return torch.cat(parts)


def overlaps(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(intersection over union of each class, and Dice), float64 [..., K]; NaN of classes that are in neither."""
    matrix = matrix.double()
    both, either = matrix.diagonal(dim1=-2, dim2=-1), matrix.sum(-1) + matrix.sum(-2)
    return both / (either - both), 2 * both / either


def score(predictions: dict[str, Tensor], split: MaskedSplit) -> float:
    """Mean intersection over union of the classes that the split's pixels have or are taken for."""
    return float(overlaps(confusions(predictions, split).sum(0))[0].nanmean())


def per_sample_scores(predictions: dict[str, Tensor], split: MaskedSplit) -> np.ndarray:
    """The same of each image alone, [N]."""
    return overlaps(confusions(predictions, split))[0].nanmean(-1).numpy()


def metrics(predictions: dict[str, Tensor], split: MaskedSplit, classes: list[str], bins: int) -> dict[str, Any]:
    """Mean IoU, mean Dice (F1), accuracy of the pixels and the mean of it over classes, boundary F1; of each class IoU, Dice,
    precision, recall, share of the pixels; the confusion matrix (pixels; rows: true class). Classes that no pixel has or is taken
    for are left out of means and listed as absent."""
    matrix = confusions(predictions, split).sum(0)
    iou, dice = overlaps(matrix)
    exact = matrix.double()
    hits, has, taken = exact.diagonal(), exact.sum(1), exact.sum(0)
    recall, precision = hits / has, hits / taken
    edges = boundary(predictions, split) if len(classes) <= MOST_EDGES else torch.full((len(classes),), math.nan)
    each = {"iou": iou, "dice": dice, "precision": precision, "recall": recall, "boundary_f1": edges, "share": has / has.sum()}
    each = {name: values for name, values in each.items() if not values.isnan().all()}
    result: dict[str, Any] = {
        "miou": float(iou.nanmean()),
        "dice": float(dice.nanmean()),
        "pixel_accuracy": float(hits.sum() / has.sum()),
        "class_accuracy": float(recall.nanmean()),
    }
    if "boundary_f1" in each:
        result["boundary_f1"] = float(edges.nanmean())
    per_class = {
        name: {key: None if math.isnan(value := float(values[c])) else value for key, values in each.items()}
        for c, name in enumerate(classes)
    }
    absent = [name for name, value in zip(classes, iou.tolist(), strict=True) if math.isnan(value)]
    return {**result, "absent": absent, "per_class": per_class, "confusion": matrix.tolist()}


def boundary(predictions: dict[str, Tensor], split: MaskedSplit) -> Tensor:
    """F1 of the edges of each class, which may be off by AT_EDGE of the diagonal, the mean over the images that have such an edge
    or are thought to, float64 [K] (Csurka et al. 2013, "What is a good evaluation measure for semantic segmentation?")."""
    reach = max(1, round(AT_EDGE * math.sqrt(2) * split.side))
    total, images = torch.zeros(2, len(split.classes), dtype=torch.float64)
    start = 0
    for truth in split.right():
        known, guess = truth != IGNORED, predictions["masks"][start : start + len(truth)]
        start += len(truth)
        for c in range(len(split.classes)):
            if not ((truth == c).any() or (guess == c)[known].any()):
                continue
            right, found = (edge((x == c) & known) & known for x in (truth, guess))
            precision, recall = covered(found, right, reach), covered(right, found, reach)
            f1 = torch.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
            there = right.flatten(1).any(1) | found.flatten(1).any(1)
            total[c] += f1[there].nan_to_num().sum()
            images[c] += there.sum()
    return total / images


def edge(inside: Tensor) -> Tensor:
    """Which pixels of an area have a neighbour, beside or above, that is not in it: bool [B, S, S]."""
    padded = F.pad(inside.float()[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] > 0
    whole = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return inside & ~whole


def covered(edges: Tensor, others: Tensor, reach: int) -> Tensor:
    """Which share of edges [B, S, S] has one of the others within reach (by columns and rows), float64 [B]; NaN of none."""
    wide = F.max_pool2d(others.float()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0
    return (edges & wide).flatten(1).sum(1).double() / edges.flatten(1).sum(1)


def columns_of_predictions(predictions: dict[str, Tensor], split: MaskedSplit, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the share of the pixels that are right (IoU is the row's score), and how sure the model is."""
    each = confusions(predictions, split).double()
    right = each.diagonal(dim1=1, dim2=2).sum(1) / each.sum((1, 2))
    columns = {"pixel_accuracy": pa.array(right.float().numpy())}
    if "confidence" in predictions:
        columns["confidence"] = pa.array(predictions["confidence"].float().numpy())
    return columns


def averaged(predictions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of each pixel the class that most models say, of equal ones the first."""
    masks = torch.stack([p["masks"] for p in predictions]).mode(0).values
    return {"masks": masks, "confidence": torch.stack([p["confidence"] for p in predictions]).mean(0)}
