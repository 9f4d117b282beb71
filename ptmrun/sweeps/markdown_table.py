"""Tables of a sweep as Markdown for a document: two settings against each other, or the methods for each value of one."""

from ptmrun.config.compared import METHODS
from ptmrun.reports import phrases, significance
from ptmrun.reports.cells import markdown_cell
from ptmrun.reports.scores_table import Row
from ptmrun.runs.folder import Run

SCORES = {"frozen": "logistic regression on the frozen features", "tuned": "fine-tuned"}
BELOW = {"frozen": ("raw", "random_frozen"), "tuned": ("raw", "scratch")}  # what stands beside each of them


def markdown(rows: list[Row]) -> str | None:
    """A table for each number of labels, and with two settings that vary for each kind of score; None where more of them vary, or
    nothing was fine-tuned."""
    keys = list(dict.fromkeys(key for row in rows for key in row.setting))
    all_results = [results for row in rows for run in row.runs if (results := run.results())]
    if len(keys) not in (1, 2) or not all_results:
        return None
    counts = dict.fromkeys(entry["labels_per_class"] for results in all_results for entry in results["by_labels"])
    about = {n: (all_results[0]["metric"], phrases.labels(n, all_results[0].get("counted", "labels per class"))) for n in counts}
    if len(keys) == 1:
        tables = [methods(rows, keys[0], n, about[n]) for n in counts]
    else:
        tables = [table(rows, keys, n, kind, about[n]) for n in counts for kind in SCORES]
    return "\n\n".join(t for t in tables if t) + "\n"


def methods(rows: list[Row], key: str, labels: int | None, about: tuple[str, str]) -> str:
    """A column for each method that was run; the best of a row is bold. "untrained" and "pretrained" are frozen features. Before
    them, where that differs, how many parameters fine-tuning trained."""
    columns = [m for m in METHODS if m != "chance" and any(values(row.runs, labels, m) for row in rows)]
    counts = [trained(row.runs) for row in rows]
    several = len(set(counts)) > 1
    titles = [key, *(["trained"] if several else []), *(METHODS[m].column for m in columns)]
    text = head(titles, *about)
    for row, count in zip(rows, counts, strict=True):
        scores = [values(row.runs, labels, m) for m in columns]
        best = max((significance.spread(v)["mean"] for v in scores if v), default=None)
        text.append(bar([row.setting.get(key, ""), *([count] if several else []), *(written(v, best) for v in scores)]))
    return "\n".join(text)


def head(titles: list[str], *about: str) -> list[str]:
    """What a table is about, and its first lines."""
    return [f"Test {', '.join(about)} (mean ± sd over seeds)", "", bar(titles), bar(["---"] * len(titles))]


def table(rows: list[Row], keys: list[str], labels: int | None, kind: str, about: tuple[str, str]) -> str:
    """Mean ± standard deviation over the runs of a setting; the best of a row is bold."""
    lines, columns = (list(dict.fromkeys(row.setting.get(key, "") for row in rows)) for key in keys)
    where = {(row.setting.get(keys[0], ""), row.setting.get(keys[1], "")): values(row.runs, labels, kind) for row in rows}
    if not any(where.values()):
        return ""
    every = {name: [run for row in rows if row.setting.get(keys[0], "") == name for run in row.runs] for name in lines}
    floors = [f for f in BELOW[kind] if any(values(every[name], labels, f) for name in lines)]
    titles = [keys[0], *(METHODS[f].column for f in floors), *columns]
    text = head(titles, *about, SCORES[kind])
    for name in lines:
        scores = [where.get((name, column), []) for column in columns]
        best = max((significance.spread(v)["mean"] for v in scores if v), default=None)
        below = [written(values(every[name], labels, floor), None) for floor in floors]
        text.append(bar([name, *below, *(written(v, best) for v in scores)]))
    return "\n".join(text)


def values(runs: list[Run], labels: int | None, kind: str) -> list[float]:
    """The mean score of each run that has it."""
    entries = [e for run in runs if (results := run.results()) for e in results["by_labels"] if e["labels_per_class"] == labels]
    return [entry["scores"][kind]["mean"] for entry in entries if kind in entry["scores"]]


def trained(runs: list[Run]) -> str:
    """Parameters that fine-tuning trained, and their share."""
    known = [counts for run in runs if (counts := (run.results() or {}).get("parameters"))]
    return f"{known[0]['trained']:,} ({100 * known[0]['trained'] / known[0]['all']:.3g}%)" if known else ""


def written(scores: list[float], best: float | None) -> str:
    if not scores:
        return ""
    spread = significance.spread(scores)
    text = phrases.score(spread)
    return f"**{text}**" if spread["mean"] == best else text


def bar(cells: list[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"
