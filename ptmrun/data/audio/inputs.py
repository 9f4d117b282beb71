"""Sounds that are to be predicted: files, and those in folders."""

from collections.abc import Iterator
from pathlib import Path

from ptmrun.data.modality import Input, InputRequest
from ptmrun.data.sources import textfile
from ptmrun.data.sources.folders import STDIN, chosen, readable
from ptmrun.data.sources.sounds import SUFFIXES
from ptmrun.errors import UserError


def of_run(request: InputRequest) -> Iterator[Input]:
    """Raises UserError where it is not clear what is to be read."""
    if request.documents != "auto" or request.pair_column is not None or request.column is not None:
        raise UserError(
            "column=, pair_column= and documents= are for tables and texts; this run was trained on sounds: name files"
        )
    for path in chosen(request.names, SUFFIXES, request.note):
        if path == STDIN:  # a path a line
            yield from (Input(line, Path(line)) for line in textfile.lines(path, "utf-8", "replace") if line.strip())
        else:
            yield Input(readable(str(path)), path)
