"""What the parts of a run took to train, as texts; and scores against compute as CSV."""

from typing import Any

from ptmrun.config.compared import METHODS
from ptmrun.reports import phrases
from ptmrun.reports.cells import csv_text as cells_as_csv

TITLES = ["training compute", "operations", "steps", "samples seen", "CPU seconds"]


def operations(flops: float | None) -> str:
    """5.01e12 -> 5.01 TFLOP"""
    if flops is None:
        return "not known"
    for scale, unit in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= scale:
            return f"{flops / scale:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def lines(results: dict[str, Any]) -> list[list[str]]:
    """Texts under TITLES; none of results of a version that did not count."""
    known, counted, seconds = results.get("compute", {}), results.get("counted", "labels per class"), results.get("cpu_s", {})
    rows = []
    if known.get("before", 0.0) != 0.0:
        rows.append(["earlier pretraining", operations(known["before"]), "", "", ""])
    if "pretrain" in known:
        rows.append(line("pretraining", known["pretrain"], seconds.get("pretrain")))
    for entry in results["by_labels"]:
        for kind, fit in entry.get("compute", {}).items():
            what = {"tuned": "fine-tuning", "scratch": "from scratch, all points"}[kind]
            labels = entry["labels_per_class"]
            title = f"{what}, {phrases.labels(labels, counted)}, a repeat"
            rows.append(line(title, fit, seconds.get(f"{labels or 'all'}-{kind}")))
    return rows


def line(title: str, fit: dict[str, Any], seconds: float | None) -> list[str]:
    """seconds: None where it was trained in another run."""
    spent = "" if seconds is None else f"{seconds:,.0f}"
    return [title, operations(fit["flops"]), f"{fit['steps']:,}", f"{fit['samples']:,}", spent]


def csv_text(sets: list[dict[str, Any]]) -> str:
    """Every point of the picture of scores against compute: one row a repeat. flops: pretraining, paid once, with what
    follows."""
    rows: list[list[Any]] = [["labels_per_class", "method", "flops", "steps", "repeat", "score", "val_score"]]
    for entry in sets:
        labels, compute = entry["labels_per_class"], entry["verdict"]["compute"]
        for point in entry["curve"]:
            for i, (score, val) in enumerate(zip(point["score"]["values"], point["val_scores"], strict=True)):
                rows.append([labels, METHODS["scratch"].title, point["flops"], point["steps"], i, score, val])
        for i, score in enumerate(entry["scores"]["tuned"]["values"]):
            flops = compute["total"] if compute["known"] else None
            rows.append([labels, METHODS["tuned"].title, flops, None, i, score, None])
            rows.append([labels, "fine-tuning alone", compute["tuned"], None, i, score, None])
    return cells_as_csv(rows)
