"""Scores of several settings in one table, with the noise of their differences."""

import base64
import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from ptmrun.config.schema import Role, keys_with
from ptmrun.errors import UserError
from ptmrun.reports import figures, phrases, significance, verdict
from ptmrun.reports.cells import csv_text as cells_as_csv
from ptmrun.reports.report import STYLE, esc, html_table
from ptmrun.runs.folder import Run

NOTE = """Mean ± standard deviation over the runs of a setting (over the repeats, where there is one run). A difference within
noise is smaller than the 95 % interval from the seeds and from the test samples; the best of many looks better than it is. What
pretraining gave is the difference from the same network trained from scratch with the same compute."""
MOST = 10_000_000  # rows of predictions
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
    path = run.sound("predictions.parquet")
    if not path.exists():
        return []
    counted = (results_of(run) or {}).get("counted", "labels per class")
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MOST:
            raise UserError(f"{path}: {file.metadata.num_rows:,} rows, more than the {MOST:,} that can be compared; refused")
        table = file.read(columns=["labels_per_class", "repeat", "score"])
        right = np.asarray(table["score"].cast(pa.float32()))
        counts, repeats = (table[c].cast(pa.int32()).to_pylist() for c in ("labels_per_class", "repeat"))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: no predictions of ptmrun ({str(error).splitlines()[0][:80]}); refused") from None
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
    """The verdict over the runs of a row; None where one of them was not compared with training from scratch."""
    all_results = [results for run in row.runs if (results := results_of(run))]
    entries = [e for results in all_results for e in results["by_labels"] if title_of(results, e) == column]
    weights = {results.get("weights_sha256") for results in all_results}
    return verdict.of_runs(entries, len(weights)) if len(entries) == len(row.runs) else None


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
        body.append(([*texts, str(len(row.runs)), duration(row.seconds)], best))
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


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


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


def page(rows: list[Row], title: str, before: str = "") -> str:
    """A self-contained page with the table and the curves; `before` is HTML to come first."""
    titles, body = lines(rows)
    parts = [f"<h1>{esc(title)}</h1>", before, html_table(titles, body) + f"<p>{NOTE}</p>"]
    if curves := figures.overlay({", ".join(row.setting.values()): [run.metrics() for run in row.runs] for row in rows}):
        data = base64.b64encode(curves).decode()
        caption = "Pretraining loss (of different objectives not comparable) and linear probe; one line a run."
        parts.append(f'<figure><img alt="curves" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>')
    style = f'<meta charset="utf-8"><title>{esc(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en">{style}{"".join(parts)}</html>\n'
