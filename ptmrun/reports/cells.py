"""A cell of a table, wherever the table is written: what stands in it may come from outside."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from ptmrun.errors import printable

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes what begins so


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay as they are."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return ("'" if value.lstrip().startswith(FORMULA) or value.startswith(FORMULA) else "") + printable(value)


def markdown_cell(value: str) -> str:
    """In one line, in which nothing ends the cell or is HTML."""
    return printable(value).replace("|", "\\|").replace("<", "&lt;")
