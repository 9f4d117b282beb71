"""Texts with several classes, and weights of classes: losses and scores by hand and against scikit-learn."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import HandMade, latest
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from texts import sentence
from torch.nn import functional as F

from ptmrun.data.splits import hold_out
from ptmrun.downstream import class_counts, classification, multilabel
from ptmrun.downstream.classification import Classifier
from ptmrun.downstream.multilabel import MultiLabel
from ptmrun.errors import UserError
from ptmrun.finetuning import methods

NAMES = ["a", "b", "c"]


class Given(HandMade):
    """Features are what comes in."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def features(self, x):
        return x


class Split:
    """Of labels alone."""

    group_ids = None

    def __init__(self, labels, groups=None):
        self.labels, self.groups = labels, groups

    def __len__(self):
        return len(self.labels)

    def subset(self, indices):
        return Split(self.labels[indices])


def drawn(count: int, seed: int = 0):
    """Features [count, 4] and labels [count, 3] of about a half, a quarter and an eighth of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=generator), torch.rand(count, 3, generator=generator) < torch.tensor(
        [0.5, 0.25, 0.125]
    )


def made(kind, smoothing=0.0):
    torch.manual_seed(0)
    return kind(Given(4), 3, smoothing)


@torch.no_grad()
def test_loss_by_hand():
    model = made(MultiLabel, smoothing=0.2)
    x, labels = drawn(6)
    p, y = model.logits(x).sigmoid(), labels.float() * 0.8 + 0.1
    loss, metrics = model({"inputs": x, "labels": labels})
    assert (loss.n, float(loss.total)) == (6, pytest.approx(float(-(y * p.log() + (1 - y) * (1 - p).log()).sum()), rel=1e-5))
    assert int(metrics["accuracy"].total) == sum(((p > 0.5) == labels).all(1).tolist())
    model.head.weight.zero_()
    assert model({"inputs": x, "labels": labels})[0].total / 6 == pytest.approx(model.initial_loss({}), rel=1e-6)
    assert model.initial_loss({}) == pytest.approx(3 * math.log(2))
    best = F.binary_cross_entropy_with_logits(torch.tensor([math.log(9.0)]), torch.tensor([0.9]))
    assert model.lowest_loss({}) == pytest.approx(3 * float(best), rel=1e-5)
    assert made(MultiLabel).lowest_loss({}) == 0


@torch.no_grad()
def test_weights_of_several_classes():
    model = made(MultiLabel)
    x, labels = drawn(40)
    model.balance_classes(labels)
    ratio = (~labels).sum(0) / labels.sum(0)
    theirs = F.binary_cross_entropy_with_logits(model.logits(x), labels.float(), pos_weight=ratio, reduction="sum")
    loss = model({"inputs": x, "labels": labels})[0]
    assert float(loss.total) == pytest.approx(float(theirs), rel=1e-5)
    model.head.weight.zero_()
    loss = model({"inputs": x, "labels": labels})[0]
    assert float(loss.total / loss.n) == pytest.approx(3 * math.log(2), rel=1e-5)  # a weighted mean
    assert "weights" not in methods.trained(model)


@torch.no_grad()
def test_weights_of_one_class():
    model = made(Classifier)
    x, labels = drawn(40)[0], torch.tensor([0] * 30 + [1] * 8 + [2] * 2)
    plain = model({"inputs": x, "labels": labels})[0]
    assert plain.n == 40
    model.balance_classes(labels)
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert model.weights.tolist() == pytest.approx(theirs.tolist())
    loss = model({"inputs": x, "labels": labels})[0]
    mean = F.cross_entropy(model.logits(x), labels, weight=torch.tensor(theirs).float())
    assert float(loss.total / loss.n) == pytest.approx(float(mean), rel=1e-5)
    assert float(loss.n) == pytest.approx(40)
    mixed = {"inputs": x, "labels": labels, "partners": labels.flip(0), "share": torch.full((40,), 0.75)}
    each = F.cross_entropy(model.logits(x), labels.flip(0), weight=torch.tensor(theirs).float(), reduction="sum")
    assert float(model(mixed)[0].total) == pytest.approx(float(0.75 * loss.total + 0.25 * each), rel=1e-5)


@pytest.mark.parametrize("kind", [Classifier, MultiLabel])
def test_accumulation_changes_nothing(kind):
    model = made(kind, smoothing=0.1)
    x, labels = drawn(8, seed=1)
    labels = labels if kind is MultiLabel else torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    model.balance_classes(labels)
    gradients = []
    for size in (8, 2):
        model.zero_grad()
        found = [model({"inputs": a, "labels": b})[0] for a, b in zip(x.split(size), labels.split(size), strict=True)]
        (sum(loss.total for loss in found) / sum(loss.n for loss in found)).backward()
        gradients.append(model.head.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-7)
    assert float(gradients[0].abs().max()) > 1e-3


@pytest.mark.parametrize("kind", [Classifier, MultiLabel])
def test_the_probe_that_training_starts_from_is_weighted(kind):
    """Where features say nothing, it answers how frequent the classes are, or with weights, nothing."""
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 4)
    labels = labels if kind is Classifier else F.one_hot(labels)
    frequent, balanced = made(kind), made(kind)
    balanced.balance_classes(labels)
    for model in (frequent, balanced):
        model.init_head_from_probe(torch.zeros(40, 4), labels)
    shares = torch.tensor([30, 6, 4]) / 40
    found = frequent.head.bias.softmax(0) if kind is Classifier else frequent.head.bias.sigmoid()
    assert found.tolist() == pytest.approx(shares.tolist(), abs=1e-3)
    even = balanced.head.bias.softmax(0) if kind is Classifier else balanced.head.bias.sigmoid()
    assert even.tolist() == pytest.approx([1 / 3 if kind is Classifier else 0.5] * 3, abs=1e-3)


def test_scores_by_hand():
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]).bool()
    guess = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0]]).bool()
    found, split = {"logits": torch.where(guess, 2.0, -2.0)}, Split(truth, np.array(["x", "x", "y", "y"]))
    assert multilabel.per_sample_scores(found, split).tolist() == pytest.approx([1, 0.5, 1, 0])
    assert multilabel.score(found, split) == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    result = multilabel.metrics(found, split, NAMES, 15)
    assert result["f1_micro"] == pytest.approx(multilabel.score(found, split))
    assert result["f1_macro"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
    assert (result["accuracy"], result["decisions"]) == (0.5, 0.75)
    assert result["per_class"]["a"] == {"precision": 1, "recall": 1, "f1": 1, "n": 2, "roc_auc": 1}
    assert result["roc_auc_macro"] == pytest.approx((1 + 0.5 + (1 / 3)) / 3)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert result["nll"] == pytest.approx((9 * right + 3 * wrong) / 4)
    assert result["groups"] == {
        "x": {"n": 2, "accuracy": 0.5, "f1_macro": pytest.approx(1 / 3)},
        "y": {"n": 2, "accuracy": 0.5, "f1_macro": 0},
    }
    table = multilabel.columns_of_predictions(found, split, NAMES)
    assert table["label"].to_pylist() == ["a", "a; b", "", "c"]
    assert table["prediction"].to_pylist() == ["a", "a; c", "", ""]
    assert table["confidence"].to_pylist() == pytest.approx([1 / (1 + math.exp(-2))] * 4)
    assert classification.valid(found, split, NAMES)
    assert not classification.valid({"logits": found["logits"][:, :2]}, split, NAMES)


def test_few_of_each_class():
    labels = drawn(60)[1]
    five, two = (multilabel.subset(Split(labels), NAMES, n, 3) for n in (5, 2))
    assert set(two.tolist()) < set(five.tolist())
    assert len(five) == len(set(five.tolist())) < 15  # some have several classes
    assert int(labels[five].sum(0).min()) >= 5
    assert len(multilabel.subset(Split(labels), NAMES, None, 3)) == 60
    rare = int(labels[:, 2].sum())
    with pytest.raises(UserError, match=f"class c has {rare} training samples"):
        multilabel.subset(Split(labels), NAMES, rare + 1, 3)


def test_the_other_problem_is_named():
    with pytest.raises(UserError, match="choose downstream=text_multilabel"):
        classification.subset(Split(drawn(5)[1]), NAMES, None, 0)
    with pytest.raises(UserError, match="choose downstream=text_classification"):
        multilabel.subset(Split(torch.tensor([0, 1, 2])), NAMES, None, 0)


def test_floors():
    x, labels = drawn(200)
    x[:, 0] = labels[:, 1] * 4.0 + x[:, 0] * 0.1  # says all about b
    labels[:, 2] = True
    train, test = Split(labels[:150]), Split(labels[150:])
    data = SimpleNamespace(train=train, test=test, classes=NAMES, raw=lambda *_: (x[:150].numpy(), x[150:].numpy(), 10.0))
    chance = multilabel.baseline_predictions("chance", data, train, None)
    assert (chance["logits"] > 0).tolist() == [[False, False, True]] * 50
    for kind in ("raw", "frozen"):
        found = multilabel.baseline_predictions(
            kind, data, train, lambda kind, split: (x[:150] if split is train else x[150:]).numpy()
        )
        assert ((found["logits"] > 0)[:, 1] == labels[150:, 1]).all()
        assert (found["logits"][:, 2] == multilabel.CERTAIN).all()
        assert classification.valid(found, test, NAMES)


def test_a_share_is_held_out_whatever_the_classes():
    rest, held = hold_out(Split(drawn(50)[1]), 0.2, 0, "test")
    assert (len(rest), len(held)) == (40, 10)


def test_unbalanced_classes_are_named():
    labels = torch.tensor([0] * 31 + [1] * 10)
    [line] = class_counts.imbalance(labels, ["often", "seldom"])
    assert line.startswith("unbalanced: 31 training samples of class often, 10 of seldom (finetune.class_weights=balanced")
    assert class_counts.imbalance(labels[1:], ["often", "seldom"]) == []
    assert class_counts.counts(torch.tensor([[1, 1, 0], [0, 1, 0]]).bool(), 3).tolist() == [1, 2, 0]


def test_a_run(ptmrun):
    generator = np.random.default_rng(0)
    rows = []
    for i in range(60):
        text = sentence(generator)
        rows.append({"text": text, "label": ",".join(["noon"] * (i % 5 == 0) + ["opened" if i % 2 else "closed"])})
    Path("texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["dataset=text", "dataset.root=texts.jsonl", "dataset.label_column=null", "downstream.root=texts.jsonl"]
    small = ["model=bert", "model.vocabulary=200", "model.length=32", "pretrain.steps=2", "pretrain.batch_size=4"]
    tuning = ["finetune.steps=2", "finetune.batch_size=4", "finetune.seeds=1", "evaluate.baselines=[chance,raw,frozen]"]
    where = ["device=cpu", "device.precision=fp32", "device.threads=1"]
    weights = ["downstream=text_multilabel", "finetune.class_weights=balanced", "downstream.labels_per_class=[4,8]"]
    code, out, err = ptmrun(*data, *small, *tuning, *where, *weights)
    assert code == 0, err
    assert "class_weights: given" not in out
    results = json.loads((latest() / "results.json").read_text())
    assert results["metric"] == "f1_micro"
    assert results["baselines"].keys() == {"chance", "raw", "frozen"}
    assert results["metrics"]["per_class"].keys() == {"closed", "noon", "opened"}
    code, _, err = ptmrun(*data, *small, *tuning, *where, "downstream=text_multilabel", "downstream.label_separator=null")
    assert code == 2
    assert "each text has one label" in err
