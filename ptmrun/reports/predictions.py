"""What predictions.parquet says about single samples: which are wrong and how sure the model was of them."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ptmrun.errors import UserError
from ptmrun.runs.folder import Run

MOST = 10_000_000  # rows
SHOWN, LONGEST = 12, 160  # mistakes, and characters of a cell
BINS = 10
TEXTS = ("sample", "id", "group", "words", "source", "reference", "label", "prediction")


def read(run: Run, columns: tuple[str, ...]) -> pa.Table | None:
    """Those columns that the file has; None without a file. Texts are dictionaries, so that a file is not larger in memory than
    it looks. Raises UserError for what is no such file."""
    path = run.sound("predictions.parquet")
    if not path.exists():
        return None
    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows > MOST:
            raise UserError(f"{path}: {file.metadata.num_rows:,} rows, more than the {MOST:,} that can be compared; refused")
        there = [c for c in columns if c in file.schema_arrow.names]
        if absent := {"labels_per_class", "repeat", "score"} - set(there):
            raise KeyError(min(absent))
        texts = [c for c in there if pa.types.is_string(file.schema_arrow.field(c).type)]
        table = pq.ParquetFile(path, metadata=file.metadata, read_dictionary=texts).read(columns=there)
        for name, kind in {"labels_per_class": pa.int32(), "repeat": pa.int32(), "score": pa.float32()}.items():
            table = table.set_column(there.index(name), name, table[name].cast(kind))
        return table
    except (pa.ArrowException, KeyError, OSError) as error:
        raise UserError(f"{path}: no predictions of ptmrun ({str(error).splitlines()[0][:80]}); refused") from None


def judged(run: Run, labels: int | None) -> dict[str, Any]:
    """`mistakes` and `calibration` of the first repeat with a number of labels; nothing without a file. Raises UserError as
    `read` does."""
    table = read(run, (*TEXTS, "confidence", "true_boxes", "f1", "labels_per_class", "repeat", "score"))
    if table is None or not len(mine := first_repeat(table, labels)):
        return {}
    try:
        return {"mistakes": mistakes(mine), "calibration": calibration(mine)}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{run.path('predictions.parquet')}: {str(error).splitlines()[0][:80]}") from None


def first_repeat(table: pa.Table, labels: int | None) -> pa.Table:
    """The rows of the first repeat with a number of labels."""
    counts, first = table["labels_per_class"], pc.equal(table["repeat"], 0)
    return table.filter(pc.and_(pc.is_null(counts) if labels is None else pc.equal(counts, labels), first))


def mistakes(table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the SHOWN worst samples of those that are wrong: the lowest score first, among equal ones those that the
    model was surest of."""
    judge = "f1" if "f1" in table.column_names else "score"  # of boxes, whose score is the image's part in that of all
    titles = [c for c in (*TEXTS, "true_boxes", "confidence", judge) if c in table.column_names]
    score, sure = np.asarray(table[judge], dtype=float), certainty(table)
    label, prediction = (table[c].to_pylist() if c in table.column_names else [] for c in ("label", "prediction"))
    wrong = np.array([a != b for a, b in zip(label, prediction, strict=True)]) if label else score < 1
    order = [i for i in np.lexsort((-sure, score)).tolist() if wrong[i]][:SHOWN]
    if sorted(set(score.tolist())) in ([0.0], [0.0, 1.0]):
        titles.remove(judge)  # right or wrong, no more
    if "confidence" in titles and not sure.any():
        titles.remove("confidence")
    shown = table.take(order).select(titles).to_pylist() if order else []
    return titles, [[cell(row[t]) for t in titles] for row in shown]


def certainty(table: pa.Table) -> np.ndarray:
    """How sure the model was, [N]; 0 where that is not one number a sample."""
    if "confidence" not in table.column_names or not pa.types.is_floating(table["confidence"].type):
        return np.zeros(len(table))
    return np.nan_to_num(np.asarray(table["confidence"], dtype=float)).clip(0, 1)


def cell(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def calibration(table: pa.Table) -> list[tuple[float, float, int]]:
    """(mean confidence, share that is right, samples) of each of BINS equal parts of the confidence that has samples."""
    sure, right = certainty(table), np.asarray(table["score"], dtype=float)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    parts = [(sure[place == b], right[place == b]) for b in range(BINS)]
    return [(float(s.mean()), float(r.mean()), len(s)) for s, r in parts if len(s)]


def confused(matrix: list[list[int]], classes: list[str], most: int = 8) -> list[list[str]]:
    """The pairs of classes that are taken for one another most often: true, predicted, how many, share of the true class."""
    pairs = [(n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:most]
    return [[classes[i], classes[j], f"{n:,}", f"{n / math.fsum(matrix[i]):.0%}"] for n, i, j in worst]
