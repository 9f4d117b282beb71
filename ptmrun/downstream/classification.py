"""Classification of whole images or texts: a linear head on the encoder's features, cross-entropy."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.config.compared import RAW
from ptmrun.downstream import classical
from ptmrun.downstream.base import Model, Problem, ProblemSetup
from ptmrun.downstream.class_counts import counts
from ptmrun.errors import UserError
from ptmrun.loss import Loss, smoothed_entropy
from ptmrun.models.modes import eval_mode

AUXILIARY = 0.4  # weight of the auxiliary classifier's loss, where the encoder has one (torchvision's recipe of Inception v3)


class Classifier(Model):
    """encoder.features -> one logit a class. `alphas` of MixUp and CutMix: the batches that it trains on are mixed."""

    weights: Tensor | None  # of the classes, [classes]
    linear_probe = True
    library_task = "classes"

    def __init__(self, encoder: Any, classes: int, label_smoothing: float, alphas: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        self.encoder, self.label_smoothing, self.alphas = encoder, label_smoothing, alphas
        self.head = linear(encoder.width, classes)
        self.register_buffer("weights", None)
        self.auxiliary_head = None
        if encoder.auxiliary_width:
            encoder.auxiliary()
            self.auxiliary_head = linear(encoder.auxiliary_width, classes)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], labels [B]; where images are mixed, partners and share [B]. The loss is the cross-entropy
        with smoothed labels."""
        images, labels = batch["inputs"], batch["labels"]
        if self.auxiliary_head is None:
            logits = self.logits(images)
            loss = self.loss(logits, batch)
        else:
            features, branch = self.encoder.both(images)
            logits = exactly(self.head, features)
            loss = self.loss(logits, batch)
            auxiliary = self.loss(exactly(self.auxiliary_head, branch), batch)
            loss = Loss(loss.total + AUXILIARY * auxiliary.total, loss.n)
        right = Loss(self.right(logits.detach(), labels).sum(), len(labels))
        return loss, {} if "share" in batch else {"accuracy": right}

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Loss:
        """Over the samples, or where classes have weights over these, so that every batch is a weighted mean."""
        loss, weight = self.losses(logits, batch["labels"], self.label_smoothing)
        if "share" in batch:
            share, (others, weights) = batch["share"], self.losses(logits, batch["partners"], self.label_smoothing)
            loss, weight = share * loss + (1 - share) * others, share * weight + (1 - share) * weights
        return Loss(loss.sum(), len(loss) if self.weights is None else weight.sum())

    def losses(self, logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        """The weighted loss of each sample and its weight, [B] each."""
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        weight = torch.ones_like(loss) if self.weights is None else self.weights.to(labels.device)[labels]
        return weight * loss, weight

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Which samples are classified rightly, [B] bool."""
        return logits.argmax(1) == labels

    def balance_classes(self, labels: Tensor | None) -> None:
        """From here on every class weighs as much as any other among these labels [N], and their mean weight is 1. Without
        labels: as the weights say that are loaded later."""
        if labels is None:
            self.weights = torch.ones_like(self.head.bias)
            return
        class_counts = counts(labels, self.head.out_features)
        seen = int((class_counts > 0).sum())
        self.weights = (len(labels) / (seen * class_counts.clamp(min=1))).to(self.head.weight)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities, smoothed labels or not: ln(classes)."""
        return math.log(self.head.out_features) * (1 if self.auxiliary_head is None else 1 + AUXILIARY)

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of the smoothed labels themselves: their entropy."""
        entropy = smoothed_entropy(self.label_smoothing, self.head.out_features)
        return entropy * (1 if self.auxiliary_head is None else 1 + AUXILIARY)

    def logits(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> float32 [B, classes]"""
        return exactly(self.head, self.encoder.features(images))

    def outputs(self, inputs: Any) -> Tensor:
        return self.logits(inputs)

    def init_head_from_probe(self, features: Tensor, labels: Tensor) -> None:
        """Sets the head to a linear probe of frozen features [times * N, D] of samples labelled [N], so that training does not
        begin by distorting them (LP-FT: Kumar et al. 2022, arXiv:2202.10054); cross-validation chooses its L2 penalty."""
        x = features.double()
        mean, std = x.mean(0), x.std(0) + 1e-6
        x = (x - mean) / std
        one = labels if labels.ndim == 1 else labels[:, labels.sum(0).argmax()]  # the most frequent class stands for all
        penalty = 0.5 / (len(labels) * classical.strength(x.numpy(), one.numpy()))
        labels = labels.repeat(len(x) // len(labels), *[1] * (labels.ndim - 1))
        head = nn.Linear(x.shape[1], self.head.out_features).double()
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss, weight = self.losses(head(x), labels, smoothing=0.0)
            loss = loss.sum() / weight.sum() + penalty * head.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.set_head(head, mean, std)

    @torch.no_grad()
    def set_head(self, probe: nn.Linear, mean: Tensor, std: Tensor) -> None:
        """Sets the head to a linear layer that was trained on standardised features."""
        self.head.weight.copy_(probe.weight / std)
        self.head.bias.copy_(probe.bias - (probe.weight * (mean / std)).sum(1))

    @torch.no_grad()
    def classified(self, features: Tensor) -> dict[str, Tensor]:
        """What `predict` gives for features [N, D]."""
        return {"logits": exactly(self.head, features).cpu()}

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The logits of all samples, [N, classes] on the CPU."""
        with eval_mode(self):
            return {"logits": torch.cat([self.logits(inputs).cpu() for inputs in batches])}


def exactly(head: nn.Linear, features: Tensor) -> Tensor:
    """In the head's own precision whatever autocast says: features that vary little around a large mean need the digits."""
    with torch.autocast(features.device.type, enabled=False):
        return head(features.to(head.weight.dtype))


def linear(width: int, classes: int) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Classifier:
    """The classifier of a fine-tuning with these options, before training."""
    return Classifier(encoder, len(setup.classes), options.label_smoothing, setup.processor.mixing(options))


def subset(split: Any, classes: list[str], per_class: int | None, seed: int) -> Tensor:
    """Indices of `per_class` samples of each class, seeded; a smaller number gives a subset of a larger one's. None: all.

    Raises UserError when a class has fewer.
    """
    labels = split.labels
    if labels.ndim > 1:
        raise UserError("downstream=text_classification: a text may have several labels here; choose downstream=text_multilabel")
    if per_class is None:
        return torch.arange(len(labels))
    order = rng.permutation(seed, "labels", len(labels))
    members = [order[labels[order] == c] for c in range(len(classes))]
    fewest = min(range(len(classes)), key=lambda c: len(members[c]))
    if len(members[fewest]) < per_class:
        raise UserError(
            f"downstream.labels_per_class={per_class}: class {classes[fewest]} has {len(members[fewest])} training samples; "
            f"choose at most that, or null for all labels"
        )
    return torch.cat([m[:per_class] for m in members])


def valid(predictions: dict[str, Tensor], split: Any, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    logits = predictions.get("logits", torch.empty(0))
    return logits.shape == (len(split), len(classes)) and logits.is_floating_point()


def per_sample_scores(predictions: dict[str, Tensor], split: Any) -> np.ndarray:
    """Which samples are right, [N] bool: their mean is the accuracy."""
    return (predictions["logits"].argmax(1) == split.labels).numpy()


def score(predictions: dict[str, Tensor], split: Any) -> float:
    return float(per_sample_scores(predictions, split).mean())


def baseline_predictions(kind: str, data: Any, train: Any, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
    """What a method without a training loop predicts for the test split. kind: chance (the most frequent class), one of RAW, or
    one of which `features` gives those of a split [N, D]."""
    labels = train.labels.numpy()
    if kind == "chance":
        guess = np.full(len(data.test), np.bincount(data.train.labels.numpy()).argmax())
    else:
        if kind in RAW:
            x, test, c = data.raw(kind, train)  # which keep their scale
            method = {"raw_knn": classical.best_neighbours, "raw_svm": classical.kernel_machine}.get(kind)
            guess = method(x, labels, test) if method else classical.classes(x, labels, test, c, standardise=False)
        else:
            guess = classical.classes(features(kind, train), labels, features(kind, data.test))
    return {"logits": F.one_hot(torch.from_numpy(guess), len(data.classes)).float()}


def columns_of_predictions(predictions: dict[str, Tensor], split: Any, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the label, the prediction and how sure it is."""
    probabilities, names = predictions["logits"].softmax(1), pa.array(classes)

    def named(indices: Tensor) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(indices.numpy().astype(np.int32)), names)

    confidence = pa.array(probabilities.max(1).values.numpy())
    return {"label": named(split.labels), "prediction": named(probabilities.argmax(1)), "confidence": confidence}


def answer_rows(predictions: dict[str, Tensor], split: Any, classes: list[str], top: int) -> list[dict[str, Any]]:
    """prediction, confidence, and the probabilities of the `top` likeliest classes, the likeliest first."""
    best = predictions["logits"].softmax(1).topk(min(top, len(classes)), 1)
    rows = []
    for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        names = [classes[i] for i in indices]
        rows.append({"prediction": names[0], "confidence": values[0], "probabilities": dict(zip(names, values, strict=True))})
    return rows


def averaged(predictions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Logits whose probabilities are the mean of those of several models."""
    return {"logits": torch.stack([p["logits"].log_softmax(1) for p in predictions]).logsumexp(0) - math.log(len(predictions))}


def metrics(predictions: dict[str, Tensor], split: Any, classes: list[str], bins: int) -> dict[str, Any]:
    """Those of `of_logits`, and where the split has groups those of `by_group`."""
    result = of_logits(predictions["logits"], split.labels, classes, bins)
    return result if split.groups is None else result | by_group(predictions["logits"], split.labels, split.groups)


def of_logits(logits: Tensor, labels: Tensor, classes: list[str], bins: int) -> dict[str, Any]:
    """Accuracy, top-5 (above 5 classes), precision, recall and F1 (macro, micro and per class), area under the ROC curve (each
    class against the rest, and their mean), negative log-likelihood, calibration error (ECE with equal-width bins, Guo et al.
    2017) and the confusion matrix (rows: true class). logits [N, classes], labels [N].

    An image has one label, so the micro averages of precision, recall and F1 all equal the accuracy. The area of a class that
    no test image has, or that all have, is null, and the mean is over the others.
    """
    from sklearn.metrics import confusion_matrix

    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    probabilities = logits.double().softmax(1)
    every = np.arange(len(classes))
    areas = [roc_auc(truth == c, probabilities[:, c].numpy()) for c in every]
    known = [area for area in areas if area is not None]
    top = logits.topk(min(5, len(classes)), 1).indices
    result = {
        "accuracy": float((guess == truth).mean()),
        **agreement(truth, guess, classes),
        "roc_auc_macro": float(np.mean(known)) if known else None,
        "nll": float(F.nll_loss(probabilities.clamp(min=1e-12).log(), labels)),
        "ece": calibration_error(probabilities.max(1).values.numpy(), guess == truth, bins),
        "confusion": confusion_matrix(truth, guess, labels=every).tolist(),
    }
    for name, area in zip(classes, areas, strict=True):
        result["per_class"][name]["roc_auc"] = area
    if len(classes) > 5:
        result["top5"] = float((top == labels[:, None]).any(1).float().mean())
    return result


def agreement(truth: np.ndarray, guess: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Precision, recall and F1: macro, micro and per class. truth, guess: classes [N], or bool [N, classes]. Macro averages are
    over the classes that samples have or are taken for, as in `by_group`; the others are listed as absent."""
    from sklearn.metrics import precision_recall_fscore_support

    every = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(truth, guess, labels=every, zero_division=0)
    there = (support > 0) | (np.bincount(guess, minlength=len(classes)) > 0 if guess.ndim == 1 else guess.any(0))
    micro = precision_recall_fscore_support(truth, guess, labels=every, average="micro", zero_division=0)
    return {
        "precision_macro": float(precision[there].mean()),
        "recall_macro": float(recall[there].mean()),
        "f1_macro": float(f1[there].mean()),
        "absent": [name for name, present in zip(classes, there, strict=True) if not present],
        "precision_micro": float(micro[0]),
        "recall_micro": float(micro[1]),
        "f1_micro": float(micro[2]),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
            for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
        },
    }


def by_group(logits: Tensor, labels: Tensor, groups: np.ndarray) -> dict[str, Any]:
    """Samples, accuracy and macro F1 of every group, and the group with the lowest accuracy. groups: names [N].

    The F1 of a group is the mean over the classes that its samples have or are taken for.
    """
    from sklearn.metrics import f1_score

    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    by_name = {}
    for name in np.unique(groups):
        t, g = truth[groups == name], guess[groups == name]
        f1 = f1_score(t, g, average="macro", zero_division=0)
        by_name[str(name)] = {"n": len(t), "accuracy": float((t == g).mean()), "f1_macro": float(f1)}
    return {"groups": by_name, "worst_group": min(by_name, key=lambda name: by_name[name]["accuracy"])}


def roc_auc(positive: np.ndarray, score: np.ndarray) -> float | None:
    """Area under the ROC curve of booleans [N] by their scores [N]; None where all or none are positive."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, score)) if 0 < positive.sum() < len(positive) else None


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """Mean gap of confidence and accuracy over equal-width bins, weighted by their size."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[place == b].mean() - correct[place == b].mean()) * (place == b).mean() for b in np.unique(place)]
    return float(sum(gaps))


PROBLEM = Problem(
    metric="accuracy",
    counted="labels per class",  # what `labels_per_class` counts
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=columns_of_predictions,
    metrics=metrics,
    answer_rows=answer_rows,
    averaged=averaged,
)
