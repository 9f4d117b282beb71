"""Images that are to be predicted: files, folders, and tables of paths."""

from collections.abc import Iterator
from pathlib import Path

from ptmrun.data.modality import Input, InputRequest, Unreadable
from ptmrun.data.sources import tables, textfile
from ptmrun.data.sources.folders import STDIN, chosen
from ptmrun.data.sources.imagefolder import SUFFIXES, readable
from ptmrun.errors import UserError

COLUMNS = ("file_name", "path", "file", "image")  # usual names of a column of paths


def of_run(request: InputRequest) -> Iterator[Input]:
    """Raises UserError where it is not clear what is to be read."""
    if request.documents != "auto" or request.pair_column is not None:
        raise UserError("documents= and pair_column= are for texts; this run was trained on images")
    for path in chosen(request.names, SUFFIXES, request.note):
        if path == STDIN:  # a path a line
            yield from (Input(line, Path(line)) for line in textfile.lines(path, "utf-8", "replace") if line.strip())
        elif path.suffix.lower() in tables.TABLES and path.is_file():
            yield from listed(path, request.column)
        else:
            yield Input(readable(str(path)), path)


def listed(table: Path, wanted: str | None) -> Iterator[Input]:
    """The images whose paths stand in a column of a table, relative to its folder."""
    head = tables.Columns("", None, None, None, not (wanted or "").isdigit())
    try:
        survey = tables.surveyed(table, head, "utf-8", "strict", strict=False)
    except UserError as error:
        yield Input(str(table), Unreadable(error.args[0]))
        return
    column = tables.column_of(table, survey, wanted, COLUMNS)
    try:
        for where, row in tables.each_row(table, head._replace(text=column), "utf-8", "strict"):
            if isinstance(row, UserError):
                yield Input(where, Unreadable(row.args[0].removeprefix(f"{where}: ")))
            elif isinstance(name := row.get(column), str) and name.strip():
                yield Input(name, table.parent / name)
            else:
                yield Input(where, Unreadable(f"no path in {column}"))
    except UserError as error:
        yield Input(str(table), Unreadable(error.args[0]))
