"""The curves of a run, with what happened on the way."""

import datetime
from collections import defaultdict
from typing import Any

from ptmrun.reports import charts, phrases
from ptmrun.reports.charts import Mark, Series
from ptmrun.runs.folder import Run
from ptmrun.training import recovery

PROBES = (("probe_linear", "linear probe", "var(--orange)"), ("probe_knn", "k-NN", "var(--green)"))
LAYER = "probe_linear_layer_"  # and its number, in metrics
MOST = 20  # fine-tunings
COLORS = [f"var(--{name})" for name in charts.PALETTE]


class Lines:
    """What metrics.jsonl says of the pretraining and of the fine-tunings that are shown."""

    def __init__(self) -> None:
        self.pretrain: dict[str, charts.Points] = defaultdict(list)
        self.tuned: dict[str, charts.Points] = defaultdict(list)  # the loss, by trial
        self.times: list[tuple[float, int]] = []  # (time, step) of the pretraining
        self.layers: list[dict[str, Any]] = []

    def points(self, name: str) -> charts.Points:
        return self.pretrain.get(name, [])


def read(run: Run, results: dict[str, Any] | None) -> Lines:
    """One pass over metrics.jsonl."""
    lines, labels = Lines(), results["by_labels"][-1]["labels_per_class"] if results else None
    prefix = f"{'all' if labels is None else labels}-tuned-"
    for entry in run.metric_lines():
        if entry["stage"] == "pretrain" and "split" not in entry:
            for name in ("loss", "held_loss", "probe_linear", "probe_knn"):
                if (value := charts.number(entry.get(name))) is not None:
                    lines.pretrain[name].append((entry["step"], value))
            if (time := charts.number(entry.get("time"))) is not None:
                lines.times.append((time, entry["step"]))
            if f"{LAYER}1" in entry:
                lines.layers.append(entry)
        elif str(entry.get("trial", "")).startswith(prefix) and (value := charts.number(entry.get("loss"))) is not None:
            lines.tuned[str(entry["trial"])].append((entry["step"], value))
    return lines


def drawn(run: Run, lines: Lines, results: dict[str, Any] | None) -> list[charts.Chart]:
    """Losses, probes and layers of the pretraining, and losses of the fine-tunings with most labels."""
    marks = [*recoveries(run, "pretrain"), *alarms(run), *restarts(run, lines)]
    losses = [
        Series("training", lines.points("loss")),
        Series("held out", lines.points("held_loss"), "var(--orange)", dots=True),
    ]
    probes = [Series(title, lines.points(name), color, dots=True) for name, title, color in PROBES]
    labels = (results or {}).get("counted", "labels per class")
    most = phrases.labels(results["by_labels"][-1]["labels_per_class"], labels) if results else ""
    tuned = [
        Series(f"repeat {i + 1}", points, COLORS[i % len(COLORS)])
        for i, (_, points) in enumerate(sorted(lines.tuned.items())[:MOST])
    ]
    behind = [mark for trial in lines.tuned for mark in recoveries(run, trial)]
    made = [
        charts.lines("Pretraining", losses, "step", "loss", marks=marks),
        charts.lines("How good the frozen features are", probes, "step", "accuracy", marks=marks),
        layers(lines.layers),
        charts.lines(f"Fine-tuning, {most}", tuned, "step", "loss", marks=behind),
    ]
    return [chart for chart in made if chart]


def layers(looks: list[dict[str, Any]]) -> charts.Chart | None:
    """The linear probe of each layer before and after pretraining."""
    series = []
    pairs = ((looks[0], "untrained", "var(--gray)"), (looks[-1], "pretrained", "var(--orange)")) if looks else ()
    for look, name, color in pairs:
        numbers = {int(k.removeprefix(LAYER)): v for k, v in look.items() if k.startswith(LAYER) and k[len(LAYER) :].isdecimal()}
        points = [(float(layer), value) for layer, v in sorted(numbers.items()) if (value := charts.number(v)) is not None]
        series.append(Series(name, points, color, dots=True))
    used = charts.number(looks[-1].get("layer")) if looks else None
    marks = [] if used is None else [Mark(used, f"layer {used:g} is used", "var(--gray)")]
    return charts.lines("Linear probe of each layer", series, "layer", "accuracy", marks=marks)


def recoveries(run: Run, purpose: str) -> list[Mark]:
    events = run.manifest.get("recoveries", [])
    return [Mark(e["to"], recovery.describe(e)) for e in events if e["purpose"].split("/")[-1] == purpose]


def alarms(run: Run) -> list[Mark]:
    what, events = "the features may be collapsing", run.manifest.get("alarms", [])
    return [Mark(e["step"], f"step {e['step']}: {what}", "var(--orange)") for e in events]


def restarts(run: Run, lines: Lines) -> list[Mark]:
    """Where the pretraining stood when it was resumed."""
    marks = []
    for when in run.manifest.get("resumed", []):
        try:
            at = datetime.datetime.fromisoformat(when).timestamp()
        except ValueError:
            continue
        before = [step for time, step in lines.times if time <= at]
        if before and len(before) < len(lines.times):
            marks.append(Mark(before[-1], f"resumed at {when}", "var(--gray)"))
    return marks
