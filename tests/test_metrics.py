"""The scores of a classifier, each against a formula of its own."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, draw, latest

from ptmrun.downstream import classification

CLASSES = list("abcdefg")
LOGITS = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 2
LABELS = torch.randint(7, (200,), generator=torch.Generator().manual_seed(1))
LOGITS[torch.arange(200), LABELS] += 1.5
GUESS = LOGITS.argmax(1)
PROBABILITIES = LOGITS.double().softmax(1)


def found(logits=LOGITS, labels=LABELS, classes=CLASSES):
    return classification.of_logits(logits, labels, classes, 10)


def counts(c: int) -> tuple[int, int, int]:
    """True positives, false positives, false negatives."""
    hit, true = c == GUESS, c == LABELS
    return int((hit & true).sum()), int((hit & ~true).sum()), int((~hit & true).sum())


def pairs_in_order(positive: torch.Tensor, score: torch.Tensor) -> float:
    """The share of (positive, negative) pairs that the score puts in order, ties by half: the area under the ROC curve."""
    gaps = score[positive][:, None] - score[~positive][None]
    return float((gaps > 0).double().mean() + (gaps == 0).double().mean() / 2)


def test_precision_recall_and_f1():
    table = [counts(c) for c in range(7)]
    precision = [tp / (tp + fp) for tp, fp, _ in table]
    recall = [tp / (tp + fn) for tp, _, fn in table]
    f1 = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in table]
    metrics = found()
    for i, name in enumerate(CLASSES):
        entry = metrics["per_class"][name]
        assert [entry[k] for k in ("precision", "recall", "f1")] == pytest.approx([precision[i], recall[i], f1[i]])
        assert entry["n"] == table[i][0] + table[i][2]
    macro = [metrics[f"{k}_macro"] for k in ("precision", "recall", "f1")]
    assert macro == pytest.approx([np.mean(precision), np.mean(recall), np.mean(f1)])
    tp, fp, fn = (sum(column) for column in zip(*table, strict=True))
    micro = [metrics[f"{k}_micro"] for k in ("precision", "recall", "f1")]
    assert micro == pytest.approx([tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn)])
    assert micro == pytest.approx([metrics["accuracy"]] * 3)
    assert metrics["accuracy"] == pytest.approx(sum(a == b for a, b in zip(GUESS.tolist(), LABELS.tolist(), strict=True)) / 200)


def test_area_under_the_roc_curve_is_the_share_of_pairs_in_order():
    metrics = found()
    expected = [pairs_in_order(c == LABELS, PROBABILITIES[:, c]) for c in range(7)]
    assert [metrics["per_class"][c]["roc_auc"] for c in CLASSES] == pytest.approx(expected)
    assert metrics["roc_auc_macro"] == pytest.approx(np.mean(expected))
    assert 0.7 < metrics["roc_auc_macro"] < 0.99


def test_the_area_of_a_class_without_test_images_is_null():
    kept = LABELS != 3
    metrics = found(LOGITS[kept], LABELS[kept])
    areas = [metrics["per_class"][c]["roc_auc"] for c in CLASSES if c != "d"]
    assert metrics["roc_auc_macro"] == pytest.approx(np.mean(areas))
    assert [c for c in CLASSES if metrics["per_class"][c]["roc_auc"] is None] == ["d"]
    assert metrics["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "roc_auc": None, "n": 0}


def test_macro_averages_leave_out_classes_that_no_sample_has_or_is_taken_for():
    """Perfect answers are perfect, whatever the split lacks."""
    labels = LABELS[(LABELS == 0) | (LABELS == 2)]
    metrics = found(10.0 * torch.eye(len(CLASSES))[labels], labels)
    assert metrics["absent"] == [c for i, c in enumerate(CLASSES) if i not in (0, 2)]
    assert [metrics[f"{name}_macro"] for name in ("precision", "recall", "f1")] == [1.0, 1.0, 1.0]
    assert found()["absent"] == []


def test_two_classes_have_the_same_area():
    metrics = found(LOGITS[:, :2], LABELS % 2, ["no", "yes"])
    areas = [metrics["per_class"][c]["roc_auc"] for c in ("no", "yes")]
    assert areas == pytest.approx([pairs_in_order(LABELS % 2 == 1, LOGITS[:, :2].double().softmax(1)[:, 1])] * 2)


def test_top_5_needs_more_than_5_classes():
    rank = (LOGITS[torch.arange(200), LABELS][:, None] < LOGITS).sum(1)
    assert found()["top5"] == pytest.approx(float((rank < 5).double().mean()))
    assert found()["top5"] > found()["accuracy"]
    assert "top5" not in found(LOGITS[:, :5], LABELS % 5, CLASSES[:5])


def test_log_likelihood_and_calibration_error():
    metrics = found()
    assert metrics["nll"] == pytest.approx(-float(PROBABILITIES[torch.arange(200), LABELS].log().mean()))
    confidence, error = PROBABILITIES.max(1).values.tolist(), 0.0
    for b in range(10):
        inside = [i for i, p in enumerate(confidence) if b / 10 <= p < (b + 1) / 10 or (b == 9 and p == 1)]
        error += abs(sum(confidence[i] - float(GUESS[i] == LABELS[i]) for i in inside)) / 200
    assert metrics["ece"] == pytest.approx(error)
    assert metrics["ece"] > 0.01


def test_confusion_counts_true_classes_in_rows():
    expected = [[sum((t, g) == (i, j) for t, g in zip(LABELS, GUESS, strict=True)) for j in range(7)] for i in range(7)]
    assert found()["confusion"] == expected


def test_groups():
    groups = np.array(["north", "south", "south", "north", "east", "south"])
    labels = torch.tensor([0, 1, 2, 1, 2, 0])
    guess = torch.tensor([0, 1, 0, 1, 2, 1])
    result = classification.by_group(torch.nn.functional.one_hot(guess, 3).float(), labels, groups)
    assert result["worst_group"] == "south"
    assert result["groups"] == {
        "east": {"n": 1, "accuracy": 1.0, "f1_macro": 1.0},
        "north": {"n": 2, "accuracy": 1.0, "f1_macro": 1.0},
        "south": {"n": 3, "accuracy": pytest.approx(1 / 3), "f1_macro": pytest.approx((0 + 2 / 3 + 0) / 3)},
    }


def test_a_run_scores_its_groups(tmp_path, ptmrun):
    """Summary, results.json, predictions.parquet and the report tell the same; group names are shown as they are."""
    root = tmp_path / "pets"
    names = {f"{'ab'[i % 2]}/{i:02}.png": f"[red]<s{i % 3}>" for i in range(60)}
    for i, name in enumerate(names):
        draw(root / name, shade=3 * (i % 2) + i % 3)
    (root / "metadata.csv").write_text("file_name,site\n" + "".join(f"{k},{v}\n" for k, v in names.items()))
    own = ["dataset=imagefolder", f"dataset.root={root}", "dataset.group=site", "dataset.image_size=16"]
    more = ["dataset.limit=null", "finetune.seeds=2", "downstream.labels_per_class=5", "evaluate.baselines=[chance]"]
    code, out, err = ptmrun(*TINY, *own, *more)
    assert code == 0, err
    metrics = json.loads((latest() / "results.json").read_text())["metrics"]
    rows = [r for r in pq.read_table(latest() / "predictions.parquet").to_pylist() if r["repeat"] == 0]
    assert all(f"<s{int(r['sample'][2:4]) % 3}>" in r["group"] and r["sample"][0] == r["label"] for r in rows)
    assert {r["group"] for r in rows} == set(names.values()) == set(metrics["groups"])
    for name, entry in metrics["groups"].items():
        mine = [r["label"] == r["prediction"] for r in rows if r["group"] == name]
        assert (entry["n"], entry["accuracy"]) == (len(mine), pytest.approx(sum(mine) / len(mine)))
        line = next(x for x in out.splitlines() if name in x)
        assert f"{entry['accuracy']:.3f}" in line
        assert f"{entry['f1_macro']:.3f}" in line
    worst = metrics["groups"][metrics["worst_group"]]
    assert worst["accuracy"] == min(e["accuracy"] for e in metrics["groups"].values())
    assert sum(e["n"] for e in metrics["groups"].values()) == len(rows)
    assert "<td>[red]&lt;s0&gt;</td>" in (latest() / "report.html").read_text()
    code, _, err = ptmrun("stage=evaluate", f"init={latest()}", "dataset.group=place", "device=cpu")
    assert (code, "metadata.csv has no column place; it has: file_name, site" in err) == (2, True)
