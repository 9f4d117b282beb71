"""Scores of several settings in one table, with the noise of their differences."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from ptmrun.config.schema import Role, keys_with
from ptmrun.reports import charts, curves, phrases, predictions, significance, verdict
from ptmrun.reports.cells import csv_text as cells_as_csv
from ptmrun.reports.page import render
from ptmrun.runs.folder import Run

NOTE = """Mean ± standard deviation over the runs of a setting (over the repeats, where there is one run). A difference within
noise is smaller than the 95 % interval from the seeds and from the test samples; the best of many looks better than it is. What
pretraining gave is the difference from the same network trained from scratch with the same compute."""
MOST_VALUES = 12  # of a setting, each of which has a line of its own
REPEATS = tuple(keys_with(Role.REPEAT))  # what runs of one setting may differ in


@dataclass
class Row:
    """Runs of one setting, which differ by REPEATS alone."""

    setting: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    seconds: float = 0.0

    def values(self, column: str) -> list[float]:
        """One value a run where there are several; of a single run, one a repeat of fine-tuning."""
        by_run = [scores(run)[column] for run in self.runs if column in scores(run)]
        return [float(np.mean(v)) for v in by_run] if len(by_run) > 1 else (by_run[0] if by_run else [])


@functools.cache
def results_of(run: Run) -> dict[str, Any] | None:
    """results.json, read and checked once a run."""
    return run.results()


@functools.cache  # the table, the CSV file and the page ask for the same
def scores(run: Run) -> dict[str, list[float]]:
    """Column title -> score of every repeat: accuracy for each number of labels, or the last linear probe of a pretraining."""
    if results := results_of(run):
        return {title_of(results, e): e["scores"]["tuned"]["values"] for e in results["by_labels"]}
    score, _, name = run.score()
    return {} if score is None else {name: [score]}


@functools.cache
def correctness(run: Run, column: str) -> list[np.ndarray]:
    """How right the prediction of each test sample is, 0 ... 1, one array [N] a repeat; empty where there are no predictions."""
    table = predictions.read(run, ("labels_per_class", "repeat", "score"))
    if table is None:
        return []
    counted = (results_of(run) or {}).get("counted", "labels per class")
    right = np.asarray(table["score"])
    counts, repeats = (table[c].to_pylist() for c in ("labels_per_class", "repeat"))
    mine = np.array([phrases.labels(n, counted) for n in counts]) == column
    return [right[mine & (np.array(repeats) == r)] for r in sorted({r for r, m in zip(repeats, mine, strict=True) if m})]


def difference(a: Row, b: Row, column: str) -> tuple[float, float | None]:
    """(mean of a - mean of b, half-width of its 95 % interval); None where nothing says how large the noise is."""
    x, y = a.values(column), b.values(column)
    seeds, samples = significance.of_seeds(x, y), None
    prints = {run.manifest.get("data", {}).get("fingerprint") for row in (a, b) for run in row.runs}
    if len(prints) == 1:  # the same test samples in the same order
        right = [[array for run in row.runs for array in correctness(run, column)] for row in (a, b)]
        if all(right) and len({len(array) for arrays in right for array in arrays}) == 1:
            samples = significance.of_samples(*right)
    return float(np.mean(x) - np.mean(y)), significance.together(seeds, samples)


def pretraining(row: Row, column: str) -> dict[str, Any] | None:
    """The verdict over the runs of a row, with its `reservations`; None where one of them was not compared with training from
    scratch."""
    all_results = [results for run in row.runs if (results := results_of(run))]
    entries = [e for results in all_results for e in results["by_labels"] if title_of(results, e) == column]
    weights = {results.get("weights_sha256") for results in all_results}
    found = verdict.of_runs(entries, len(weights)) if len(entries) == len(row.runs) else None
    return found and {**found, "reservations": phrases.reservations(entries)}


def title_of(results: dict[str, Any], entry: dict[str, Any]) -> str:
    """The column of an entry."""
    return phrases.labels(entry["labels_per_class"], results.get("counted", "labels per class"))


@dataclass(frozen=True)
class Cell:
    """A score in the table, and how it stands to the best of its column."""

    mean: float
    sd: float | None
    n: int
    gap: float
    noise: float | None

    @property
    def words(self) -> str:
        if self.gap == 0:
            return "best"
        if self.noise is None:
            return f"{100 * self.gap:+.1f}, noise unknown"
        return f"{100 * self.gap:+.1f}" + (f", within noise ({100 * self.noise:.1f})" if -self.gap <= self.noise else "")


def cells(rows: list[Row]) -> dict[str, list[Cell | None]]:
    """Column -> one cell a row."""
    result: dict[str, list[Cell | None]] = {}
    for column in dict.fromkeys(c for row in rows for run in row.runs for c in scores(run)):
        values = [row.values(column) for row in rows]
        best = max((i for i, v in enumerate(values) if v), key=lambda i: np.mean(values[i]))
        line: list[Cell | None] = []
        for row, scores_of_row in zip(rows, values, strict=True):
            if not scores_of_row:
                line.append(None)
                continue
            gap, width = difference(row, rows[best], column) if row is not rows[best] else (0.0, None)
            spread = significance.spread(scores_of_row)
            line.append(Cell(spread["mean"], spread["sd"], len(scores_of_row), gap, width))
        result[column] = line
    return result


def lines(rows: list[Row]) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Column titles, and for each row its texts and whether it is the best (of the last column)."""
    keys, table = list(dict.fromkeys(k for row in rows for k in row.setting)), cells(rows)
    gains = {column: [pretraining(row, column) for row in rows] for column in table}
    titles = {c: [c, "against the best", *(["pretraining"] if any(gains[c]) else [])] for c in table}
    body = []
    for i, row in enumerate(rows):
        texts, best = [row.setting.get(k, "") for k in keys], False
        for column, line in table.items():
            cell, gain = line[i], gains[column][i]
            best = cell is not None and cell.gap == 0
            texts += [phrases.score({"mean": cell.mean, "sd": cell.sd}), cell.words] if cell else ["", "no score"]
            texts += [verdict.short(gain) if gain else ""] if any(gains[column]) else []
        body.append(([*texts, str(len(row.runs)), phrases.duration(row.seconds)], best))
    return [*keys, *(title for c in table for title in titles[c]), "runs", "time"], body


def table(rows: list[Row], title: str) -> Table:
    """For the terminal: one row a setting."""
    titles, body = lines(rows)
    made = Table(title=title, title_justify="left")
    for name in titles:
        made.add_column(escape(name), overflow="fold")
    for texts, best in body:
        made.add_row(*map(escape, texts), style="bold" if best else None)
    return made


def csv_text(rows: list[Row]) -> str:
    """The same for other programs: every number in full."""
    keys, table = list(dict.fromkeys(k for row in rows for k in row.setting)), cells(rows)
    about = ("mean", "sd", "n", "gap", "noise", "outcome", "gain over scratch", "noise of that")
    names = [f"{column} {what}" for column in table for what in about]
    written: list[list[Any]] = [[*keys, *names, "runs", "seconds"]]
    for i, row in enumerate(rows):
        numbers: list[Any] = []
        for column, line in table.items():
            cell, gain = line[i], pretraining(row, column)
            numbers += [cell.mean, cell.sd, cell.n, cell.gap, cell.noise] if cell else [None] * 5
            numbers += [gain["outcome"], gain["gain_over_scratch"], gain["noise"]] if gain else [None] * 3
        runs = " ".join(str(run.folder) for run in row.runs)
        written.append([*[row.setting.get(k, "") for k in keys], *numbers, runs, round(row.seconds, 1)])
    return cells_as_csv(written)


@dataclass(frozen=True)
class Grid:
    """A table of scores for a document: its caption, titles and rows; of each cell its text and whether it is the best of its
    row."""

    caption: str
    titles: list[str]
    rows: list[list[tuple[str, bool]]]


def page(
    rows: list[Row],
    title: str,
    *,
    status: str = "",
    names: list[tuple[str, str]] | None = None,
    settings: tuple[list[str], list[list[str]]] | None = None,
    failures: list[list[str]] | None = None,
    grids: list[Grid] | None = None,
) -> str:
    """A self-contained page with the table and the curves. status: how the jobs ended; names: what rows are called, and
    what they are; settings: titles and rows of a table of them; failures: for each job without a result its setting, how it ended
    and why."""
    titles, body = lines(rows)
    return render(
        "sweep.html",
        name=title,
        answer=best_of(rows),
        status=status,
        table={"titles": titles, "rows": [texts for texts, _ in body], "chosen": [i for i, (_, best) in enumerate(body) if best]},
        note=NOTE,
        curves=[] if not rows else overlaid(rows),
        effects=effects(rows),
        names=names or [],
        settings=settings,
        failures=failures or [],
        grids=grids or [],
    )


def best_of(rows: list[Row]) -> str:
    """The best setting in a sentence, and how many others are not told from it."""
    table = cells(rows)
    if not table:
        return "No scores yet"
    column, line = list(table.items())[-1]
    known = [(row, cell) for row, cell in zip(rows, line, strict=True) if cell]
    row, cell = next((row, cell) for row, cell in known if cell.gap == 0)
    near = sum(c.gap != 0 and (c.noise is None or -c.gap <= c.noise) for _, c in known)
    if len(known) == 1:
        others = ""
    elif near:
        others = f"; {near} of the {len(known) - 1} others cannot be told from it"
    else:
        others = "; all others are below it, beyond the noise"
    return f"Best ({column}): {name_of(row)}, {phrases.score({'mean': cell.mean, 'sd': cell.sd})}{others}"


def name_of(row: Row) -> str:
    return ", ".join(f"{k}={v}" for k, v in row.setting.items()) or "the only setting"


def overlaid(rows: list[Row]) -> list[charts.Chart]:
    """Pretraining loss and linear probe of all settings: one line a run, one colour a setting."""
    few, made = len(rows) <= len(curves.COLORS), []
    for title, key, y_title in (
        ("Pretraining", "loss", "loss (of different objectives not comparable)"),
        ("Linear probe", "probe_linear", "accuracy"),
    ):
        series = []
        for place, row in enumerate(rows):
            color = curves.COLORS[place] if few else f"hsl({360 * place // len(rows)} 60% 50%)"
            for run in row.runs:
                of_run = f"{name_of(row)}, {run.folder.resolve().name}" if len(row.runs) > 1 else name_of(row)
                points = pretraining_curves(run).points(key)
                series.append(charts.Series(of_run, points, color, dots=key != "loss", legend=name_of(row)))
        made.append(charts.lines(title, series, "step", y_title))
    return [chart for chart in made if chart]


@functools.cache
def pretraining_curves(run: Run) -> curves.Lines:
    return curves.read(run, None)


def effects(rows: list[Row]) -> list[charts.Bars | charts.Chart]:
    """The mean score of all settings that have a value, for each value of each setting, where several settings vary: what one of
    them does, whatever the others are; a dot for each of many numbers. In the last column."""
    keys = list(dict.fromkeys(k for row in rows for k in row.setting))
    column = next(reversed(cells(rows)), None) if len(keys) > 1 else None
    made: list[charts.Bars | charts.Chart | None] = []
    for key in keys if column else ():
        of_value: dict[str, list[float]] = {}
        for row in rows:
            if scored := row.values(column or ""):
                of_value.setdefault(row.setting.get(key, "default"), []).append(float(np.mean(scored)))
        title = f"{key} ({column})"
        if 1 < len(of_value) <= MOST_VALUES:
            spreads = {f"{value} ({len(scores)})": significance.spread(scores) for value, scores in of_value.items()}
            made.append(
                charts.bars(title, [charts.Bar(name, s["mean"], s["sd"]) for name, s in spreads.items()], from_zero=False)
            )
        elif len(of_value) > 1:
            made.append(scattered(title, key, of_value))
    return [chart for chart in made if chart]


def scattered(title: str, key: str, of_value: dict[str, list[float]]) -> charts.Chart | None:
    """Scores against the values of a setting; None where these are no numbers."""
    try:
        points = sorted((float(value), score) for value, scored in of_value.items() for score in scored)
    except ValueError:
        return None
    log = points[0][0] > 0 and points[-1][0] / points[0][0] > 30
    return charts.lines(title, [charts.Series("a setting", points, dots=True, line=False)], key, "score", log_x=log)
