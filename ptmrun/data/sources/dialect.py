"""How a table that people call .csv or .tsv is really written: the mark between its fields, and whether it names its columns."""

import csv
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from ptmrun.data.sources.folders import nfc
from ptmrun.data.sources.textfile import lines

MARKS = ",;\t|"
SAMPLE = 20  # lines
NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons"}
LONG = 5  # words, from which something is no name of a column


def separator(path: Path, header: bool, encoding: str, errors: str) -> tuple[str, int]:
    """(the mark between fields, lines before the first of the table): as a first line such as `sep=;` says, else what the file's
    ending means; where that is not in a header line, another mark that divides it and some lines after it alike."""
    own = "," if path.suffix.lower() == ".csv" else "\t"
    sample = list(islice(lines(path, encoding, errors), SAMPLE))
    if sample and (stated := re.fullmatch('"?sep=(.)"?', sample[0])):
        return stated[1], 1
    if header and sample and own not in sample[0]:
        for mark in MARKS:
            rows = fields(sample, mark)
            if len(rows) > 1 and len(rows[0]) > 1 and all(rows[0]) and len({len(row) for row in rows}) == 1:
                return mark, 0
    return own, 0


def fields(sample: list[str], mark: str) -> list[list[str]]:
    """Lines cut at a mark; the last ones may be part of a longer field, and are left out."""
    try:
        rows = [row for row in csv.reader((f"{line}\n" for line in sample), delimiter=mark, strict=True) if row]
    except csv.Error:
        return []
    return rows[:-1] if len(sample) == SAMPLE else rows


def folded(name: str) -> str:
    """Names of columns that people take for the same have the same."""
    return nfc(name).strip().casefold()


def alike(name: str, names: Iterable[str]) -> str | None:
    """This name among others, or the only one that differs in case, spaces around it or Unicode form alone."""
    names = list(names)
    if name in names:
        return name
    same = [other for other in names if folded(other) == folded(name)]
    return same[0] if len(same) == 1 else None


def is_row(first: list[str], rows: list[dict[str, str]], numeric: set[str]) -> bool:
    """Whether the first line of a table, taken for names of its columns, is one of its rows: it has a number (`numeric` of its
    cells; 0, 1 ... as pandas counts columns are names), a sentence, or what stands again below it."""
    counted = [cell for cell in first if cell in numeric]
    if counted and counted != [str(i) for i in range(len(counted))]:
        return True
    return any(len(cell.split()) >= LONG or any(row.get(cell) == cell for row in rows) for cell in first if cell)
