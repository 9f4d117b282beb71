"""Two settings against each other: rows of the first, columns of the second, floors beside them, as Markdown for a document."""

from ptmrun import noise
from ptmrun.compare import Row
from ptmrun.evaluation import label_words
from ptmrun.run import Run

SCORES = {"frozen": "logistic regression on the frozen features", "tuned": "fine-tuned"}
FLOORS = {
    "frozen": {"raw": "pixels", "random_frozen": "untrained"},
    "tuned": {"raw": "pixels", "scratch": "scratch", "scratch_long": "scratch, longer"},
}


def markdown(rows: list[Row]) -> str | None:
    """A table for each number of labels and kind of score; None unless exactly two settings vary, and fine-tuning was run."""
    keys = list(dict.fromkeys(key for row in rows for key in row.setting))
    found = [results for row in rows for run in row.runs if (results := run.results())]
    if len(keys) != 2 or not found:
        return None
    counts = dict.fromkeys(entry["labels_per_class"] for results in found for entry in results["by_labels"])
    tables = [table(rows, keys, labels, kind) for labels in counts for kind in SCORES]
    return "\n\n".join(t for t in tables if t) + "\n"


def table(rows: list[Row], keys: list[str], labels: int | None, kind: str) -> str:
    """Mean ± standard deviation over the runs of a setting; the best of a row is bold."""
    lines, columns = (list(dict.fromkeys(row.setting[key] for row in rows)) for key in keys)
    where = {(row.setting[keys[0]], row.setting[keys[1]]): values(row.runs, labels, kind) for row in rows}
    if not any(where.values()):
        return ""
    every = {name: [run for row in rows if row.setting[keys[0]] == name for run in row.runs] for name in lines}
    floors = [f for f in FLOORS[kind] if any(values(every[name], labels, f) for name in lines)]
    titles = [keys[0], *(FLOORS[kind][f] for f in floors), *columns]
    text = [
        f"Test accuracy, {SCORES[kind]}, {label_words(labels)} (mean ± sd over seeds)",
        "",
        bar(titles),
        bar(["---"] * len(titles)),
    ]
    for name in lines:
        found = [where.get((name, column), []) for column in columns]
        best = max((noise.spread(v)["mean"] for v in found if v), default=None)
        text.append(bar([name, *(words(values(every[name], labels, f), None) for f in floors), *(words(v, best) for v in found)]))
    return "\n".join(text)


def values(runs: list[Run], labels: int | None, kind: str) -> list[float]:
    """The mean score of each run that has it."""
    entries = [e for run in runs if (found := run.results()) for e in found["by_labels"] if e["labels_per_class"] == labels]
    return [entry["scores"][kind]["mean"] for entry in entries if kind in entry["scores"]]


def words(found: list[float], best: float | None) -> str:
    if not found:
        return ""
    spread = noise.spread(found)
    text = f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")
    return f"**{text}**" if spread["mean"] == best else text


def bar(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
