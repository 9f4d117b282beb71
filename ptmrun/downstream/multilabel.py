"""Classification of texts that may have several classes, or none: a linear head, binary cross-entropy of each class."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.config.compared import RAW
from ptmrun.downstream import classical
from ptmrun.downstream.base import Problem, ProblemSetup
from ptmrun.downstream.class_counts import counts
from ptmrun.downstream.classification import Classifier, agreement, roc_auc, valid
from ptmrun.errors import UserError
from ptmrun.loss import smoothed_entropy

CERTAIN = 30.0  # largest logit of a classical baseline


class MultiLabel(Classifier):
    """encoder.features -> one logit a class; above 0 the text has the class. Labels are 0 and 1, [B, classes]."""

    library_task = "several"

    def losses(self, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """The weighted loss of each sample, summed over the classes, and its weight, [B] each."""
        truth = labels.to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(logits, truth * (1 - smoothing) + smoothing / 2, reduction="none")
        weight = torch.ones_like(loss)
        if self.weights is not None:
            weight = torch.where(labels.bool(), self.weights.to(labels.device), weight)
        return (weight * loss).sum(1), weight.mean(1)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which samples have exactly their classes, [B] bool."""
        return ((logits > 0) == labels.bool()).all(1)

    def balance_classes(self, labels: Tensor | None) -> None:
        """From here on the samples that have a class weigh, together, as much as those that do not; labels [N, classes]."""
        if labels is None:
            super().balance_classes(None)
            return
        class_counts = counts(labels, self.head.out_features)
        self.weights = ((len(labels) - class_counts).clamp(min=1) / class_counts.clamp(min=1)).to(self.head.weight)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities, smoothed labels or not: ln 2 for each class."""
        return math.log(2) * self.head.out_features

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of the smoothed labels themselves: their entropy."""
        return smoothed_entropy(self.label_smoothing, 2) * self.head.out_features


def build(encoder: Any, setup: ProblemSetup, options: Any) -> MultiLabel:
    """The classifier of a fine-tuning with these options, before training."""
    return MultiLabel(encoder, len(setup.classes), options.label_smoothing)


def subset(split: Any, classes: list[str], per_class: int | None, seed: int) -> Tensor:
    """Indices of `per_class` samples of each class, seeded, together: a class may have more, as samples of others have it too. A
    smaller number gives a subset of a larger one's. None: all.

    Raises UserError when a class has fewer, and where the samples have one label each.
    """
    labels = split.labels
    if labels.ndim == 1:
        raise UserError(
            "downstream=text_multilabel: each text has one label; name what stands between several (label_separator), give lists "
            "(jsonl), or choose downstream=text_classification"
        )
    if per_class is None:
        return torch.arange(len(labels))
    class_counts = counts(labels, len(classes))
    fewest = int(class_counts.argmin())
    if class_counts[fewest] < per_class:
        raise UserError(
            f"downstream.labels_per_class={per_class}: class {classes[fewest]} has {int(class_counts[fewest])} training samples; "
            f"choose at most that, or null for all labels"
        )
    order = rng.permutation(seed, "labels", len(labels))
    has = labels[order].bool()
    wanted = (has & (has.cumsum(0) <= per_class)).any(1)
    return order[wanted]


def per_sample_scores(predictions: dict[str, Tensor], split: Any) -> np.ndarray:
    """F1 of each sample's classes, [N] from 0 to 1; where it has none and gets none, 1."""
    guess, truth = predictions["logits"] > 0, split.labels.bool()
    shared, both = (guess & truth).sum(1), guess.sum(1) + truth.sum(1)
    return torch.where(both > 0, 2 * shared / both.clamp(min=1), 1.0).numpy()


def score(predictions: dict[str, Tensor], split: Any) -> float:
    """F1 of all decisions together (micro)."""
    guess, truth = predictions["logits"] > 0, split.labels.bool()
    return float(2 * (guess & truth).sum() / (guess.sum() + truth.sum()).clamp(min=1))


def baseline_predictions(kind: str, data: Any, train: Any, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
    """What a method without a training loop predicts for the test split. kind: chance (the most frequent class alone), one of
    RAW, or one of which `features` gives those of a split [N, D]; a logistic regression for each class."""
    labels = train.labels.bool().numpy()
    logits = np.full((len(data.test), labels.shape[1]), -CERTAIN)
    if kind == "chance":
        logits[:, int(counts(data.train.labels, len(data.classes)).argmax())] = CERTAIN
        return {"logits": torch.from_numpy(logits).float()}
    if kind in RAW:
        x, test, c = data.raw(kind, train)
        settings = {"c": c, "standardise": False}  # as in classification
    else:
        x, test, settings = features(kind, train), features(kind, data.test), {}
    for column, truth in enumerate(labels.T):
        if truth.all():
            logits[:, column] = CERTAIN
        elif truth.any():
            scores = classical.logistic(x, truth, test, **settings)
            logits[:, column] = (scores[:, 1] - scores[:, 0]).clip(-CERTAIN, CERTAIN)
    return {"logits": torch.from_numpy(logits).float()}


def columns_of_predictions(predictions: dict[str, Tensor], split: Any, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the labels and the predictions, "; " between them, and how sure the least sure decision is."""
    probabilities = predictions["logits"].sigmoid()

    def named(rows: Tensor) -> pa.Array:
        return pa.array(["; ".join(c for c, has in zip(classes, row, strict=True) if has) for row in rows.tolist()], pa.string())

    confidence = torch.maximum(probabilities, 1 - probabilities).min(1).values
    return {
        "label": named(split.labels.bool()),
        "prediction": named(predictions["logits"] > 0),
        "confidence": pa.array(confidence.numpy()),
    }


def answer_rows(predictions: dict[str, Tensor], split: Any, classes: list[str], top: int) -> list[dict[str, Any]]:
    """prediction (a list of classes), how sure the least sure decision is, and the probabilities of the `top` likeliest."""
    probabilities = predictions["logits"].sigmoid()
    best = probabilities.topk(min(top, len(classes)), 1)
    confidence = torch.maximum(probabilities, 1 - probabilities).min(1).values.tolist()
    rows = []
    for i, decided in enumerate((predictions["logits"] > 0).tolist()):
        likeliest = zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
        rows.append(
            {
                "prediction": [name for name, has in zip(classes, decided, strict=True) if has],
                "confidence": confidence[i],
                "probabilities": {classes[c]: value for c, value in likeliest},
            }
        )
    return rows


def averaged(predictions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Logits whose probabilities are the mean of those of several models."""
    logits = torch.stack([p["logits"] for p in predictions])
    return {"logits": F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)}


def metrics(predictions: dict[str, Tensor], split: Any, classes: list[str], bins: int) -> dict[str, Any]:
    """Precision, recall and F1 (micro, macro and per class), the share of samples with exactly their classes (accuracy) and of
    right decisions (decisions), area under the ROC curve and negative log-likelihood of a sample (all of its classes); where the
    split has groups, accuracy and macro F1 of every group.

    The area of a class that all samples have, or none, is null, and the mean is over the others.
    """
    logits, truth = predictions["logits"], split.labels.bool()
    right = of_decisions((logits > 0).numpy(), truth.numpy(), classes)
    areas = [roc_auc(truth[:, c].numpy(), logits[:, c].numpy()) for c in range(len(classes))]
    known = [area for area in areas if area is not None]
    for name, area in zip(classes, areas, strict=True):
        right["per_class"][name]["roc_auc"] = area
    nll = F.binary_cross_entropy_with_logits(logits.double(), truth.double(), reduction="none").sum(1).mean()
    result = {**right, "roc_auc_macro": float(np.mean(known)) if known else None, "nll": float(nll)}
    return result if split.groups is None else result | by_group((logits > 0).numpy(), truth.numpy(), split.groups)


def of_decisions(guess: np.ndarray, truth: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """guess, truth: bool [N, classes]."""
    exact, decisions = (guess == truth).all(1).mean(), (guess == truth).mean()
    return {"accuracy": float(exact), "decisions": float(decisions), **agreement(truth, guess, classes)}


def by_group(guess: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    """Samples, accuracy and macro F1 of every group, and the group with the lowest accuracy. groups: names [N].

    The F1 of a group is the mean over the classes that its samples have or are taken for.
    """
    by_name = {}
    for name in np.unique(groups):
        t, g = truth[groups == name], guess[groups == name]
        both = t.sum(0) + g.sum(0)
        f1 = (2 * (t & g).sum(0) / np.maximum(both, 1))[both > 0]
        accuracy = float((g == t).all(1).mean())
        by_name[str(name)] = {"n": len(t), "accuracy": accuracy, "f1_macro": float(f1.mean()) if len(f1) else 1.0}
    return {"groups": by_name, "worst_group": min(by_name, key=lambda name: by_name[name]["accuracy"])}


PROBLEM = Problem(
    metric="f1_micro",
    counted="labels per class, or more",  # a text counts for each of its classes
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    untrained_baselines=("chance", "raw", "raw_chars", "random_frozen", "frozen"),
    columns_of_predictions=columns_of_predictions,
    metrics=metrics,
    answer_rows=answer_rows,
    averaged=averaged,
)
