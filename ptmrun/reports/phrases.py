"""How results are put into words, wherever they are shown."""

from typing import Any

from ptmrun.config.compared import BASELINES, METHODS
from ptmrun.reports import significance

GROUP_TITLES = ["group", "samples", "accuracy", "macro F1"]


def title(metric: str) -> str:
    """The name of a metric as a heading."""
    return metric.replace("_", " ").capitalize()


def score(spread: dict[str, Any]) -> str:
    """Mean and standard deviation, of a single value it alone."""
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")


def group_lines(groups: dict[str, Any]) -> list[list[str]]:
    """Texts under GROUP_TITLES, the worst group first."""
    order = sorted(groups.items(), key=lambda item: item[1]["accuracy"])
    return [[name, f"{s['n']:,}", f"{s['accuracy']:.3f}", f"{s['f1_macro']:.3f}"] for name, s in order]


def labels(number: int | None, counted: str = "labels per class") -> str:
    """`counted`: what the problem counts."""
    if number is None:
        return "all labels"
    return f"{number} {counted}" if number > 1 else f"1 {counted.replace('labels', 'label', 1)}"


def methods(longer: int | str, own: dict[str, str]) -> dict[str, str]:
    """What each method is, those that are the problem's own in its words."""
    return {kind: method.phrase.format(longer=longer) for kind, method in METHODS.items()} | {
        k: own[k] for k in METHODS if k in own
    }


def conclusions(entry: dict[str, Any], words: dict[str, str], counted: str) -> list[str]:
    """The verdict in words, and the truth when a simpler method wins."""
    lines = []
    if "verdict" in entry:
        lines.append(f"With {labels(entry['labels_per_class'], counted)}: {significance.sentence(entry['verdict'])}")
    scores = {k: v["mean"] for k, v in entry["scores"].items()}
    simpler = set(BASELINES) - {"chance", "scratch"}  # the verdict is about the latter
    better = [k for k in BASELINES if k in simpler & scores.keys() and scores[k] >= scores["tuned"]]
    if better:
        best = max(better, key=lambda k: scores[k])
        lines.append(f"But {words[best]} does as well or better: {scores[best]:.3f} against {scores['tuned']:.3f}.")
    return lines
