"""Tables of a sweep as Markdown for a document: two settings against each other, or the methods for each value of one."""

from ptmrun.config.compared import METHODS
from ptmrun.reports import phrases, significance
from ptmrun.reports.cells import markdown_cell
from ptmrun.reports.scores_table import Grid, Row
from ptmrun.runs.folder import Run

SCORES = {"frozen": "logistic regression on the frozen features", "tuned": "fine-tuned"}
BELOW = {"frozen": ("raw", "random_frozen"), "tuned": ("raw", "scratch")}  # what stands beside each of them


def markdown(rows: list[Row]) -> str | None:
    """The grids as Markdown; None where there are none."""
    return "\n\n".join(map(as_markdown, grids(rows))) + "\n" if grids(rows) else None


def grids(rows: list[Row]) -> list[Grid]:
    """A table for each number of labels, and with two settings that vary for each kind of score; none where more of them vary, or
    nothing was fine-tuned."""
    keys = list(dict.fromkeys(key for row in rows for key in row.setting))
    all_results = [results for row in rows for run in row.runs if (results := run.results())]
    if len(keys) not in (1, 2) or not all_results:
        return []
    counts = dict.fromkeys(entry["labels_per_class"] for results in all_results for entry in results["by_labels"])
    about = {n: (all_results[0]["metric"], phrases.labels(n, all_results[0].get("counted", "labels per class"))) for n in counts}
    if len(keys) == 1:
        return [methods(rows, keys[0], n, about[n]) for n in counts]
    tables = [table(rows, keys, n, kind, about[n]) for n in counts for kind in SCORES]
    return [t for t in tables if t]


def methods(rows: list[Row], key: str, labels: int | None, about: tuple[str, str]) -> Grid:
    """A column for each method that was run; the best of a row is bold. "untrained" and "pretrained" are frozen features. Before
    them, where that differs, how many parameters fine-tuning trained."""
    columns = [m for m in METHODS if m != "chance" and any(values(row.runs, labels, m) for row in rows)]
    counts = [trained(row.runs) for row in rows]
    several = len(set(counts)) > 1
    lines = []
    for row, count in zip(rows, counts, strict=True):
        scores = [values(row.runs, labels, m) for m in columns]
        best = max((significance.spread(v)["mean"] for v in scores if v), default=None)
        before = [row.setting.get(key, ""), *([count] if several else [])]
        lines.append([*((text, False) for text in before), *(written(v, best) for v in scores)])
    return Grid(caption(*about), [key, *(["trained"] if several else []), *(METHODS[m].column for m in columns)], lines)


def caption(*about: str) -> str:
    return f"Test {', '.join(about)} (mean ± sd over seeds)"


def table(rows: list[Row], keys: list[str], labels: int | None, kind: str, about: tuple[str, str]) -> Grid | None:
    """Mean ± standard deviation over the runs of a setting; the best of a row is bold."""
    names, columns = (list(dict.fromkeys(row.setting.get(key, "") for row in rows)) for key in keys)
    where = {(row.setting.get(keys[0], ""), row.setting.get(keys[1], "")): values(row.runs, labels, kind) for row in rows}
    if not any(where.values()):
        return None
    every = {name: [run for row in rows if row.setting.get(keys[0], "") == name for run in row.runs] for name in names}
    floors = [f for f in BELOW[kind] if any(values(every[name], labels, f) for name in names)]
    lines = []
    for name in names:
        scores = [where.get((name, column), []) for column in columns]
        best = max((significance.spread(v)["mean"] for v in scores if v), default=None)
        below = [written(values(every[name], labels, floor), None) for floor in floors]
        lines.append([(name, False), *below, *(written(v, best) for v in scores)])
    return Grid(caption(*about, SCORES[kind]), [keys[0], *(METHODS[f].column for f in floors), *columns], lines)


def values(runs: list[Run], labels: int | None, kind: str) -> list[float]:
    """The mean score of each run that has it."""
    entries = [e for run in runs if (results := run.results()) for e in results["by_labels"] if e["labels_per_class"] == labels]
    return [entry["scores"][kind]["mean"] for entry in entries if kind in entry["scores"]]


def trained(runs: list[Run]) -> str:
    """Parameters that fine-tuning trained, and their share."""
    known = [counts for run in runs if (counts := (run.results() or {}).get("parameters"))]
    return f"{known[0]['trained']:,} ({100 * known[0]['trained'] / known[0]['all']:.3g}%)" if known else ""


def written(scores: list[float], best: float | None) -> tuple[str, bool]:
    if not scores:
        return "", False
    spread = significance.spread(scores)
    return phrases.score(spread), spread["mean"] == best


def as_markdown(grid: Grid) -> str:
    cells = [[f"**{text}**" if best else text for text, best in row] for row in grid.rows]
    return "\n".join([grid.caption, "", bar(grid.titles), bar(["---"] * len(grid.titles)), *map(bar, cells)])


def bar(cells: list[str]) -> str:
    return f"| {' | '.join(map(markdown_cell, cells))} |"
