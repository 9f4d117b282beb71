"""The inputs of `predict` and `embed`, and the files that they write."""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from ptmrun.data.modality import Input, InputRequest
from ptmrun.errors import UserError, printable
from ptmrun.runs.progress import EVERY
from ptmrun.stages.networks import Networks, modality_of
from ptmrun.storage.files import write_atomic

CHUNK = 512  # inputs that are in memory at a time


def target(out: str | None, endings: tuple[str, ...]) -> Path | None:
    """The file to be written. Raises UserError when it is there, or is none that can be."""
    if out is None:
        return None
    path = Path(out).expanduser()
    if path.suffix not in endings:
        raise UserError(f"out={out}: expected a file ending in {' '.join(endings)}")
    if os.path.lexists(path):
        raise UserError(f"out={out}: is there already; choose a file that is not")
    if not path.parent.is_dir():
        raise UserError(f"out={out}: no such folder {path.parent}")
    return path


def inputs_of(networks: Networks, names: list[str], options: Any, answered: bool) -> list[Input]:
    """What the names mean for this run; `answered`: as its problem reads it. Raises UserError where that is nothing."""
    own = networks.problem.inputs if answered else None
    read = modality_of(networks.cfg).inputs
    request = InputRequest(
        names=names,
        cfg=networks.cfg,
        facts=networks.facts,
        column=options.column,
        pair_column=options.pair_column,
        documents=options.documents,
        note=note,
    )
    if own is None and read is None:
        raise UserError("data of this kind are not read from files; in Python: ptmrun.load(RUN).predict([...])")
    inputs = list(own(request, networks.problem_setup) if own else read(request) if read else ())
    if not inputs:
        raise UserError(f"{' '.join(names)}: nothing is in there")
    return inputs


def note(line: str) -> None:
    print(f"ptmrun: {printable(line)}", file=sys.stderr)


def in_chunks(inputs: list[Input], title: str, size: int = CHUNK) -> Iterator[list[Input]]:
    """The inputs, a number at a time, while stderr shows how far it is."""
    chunks = [inputs[i : i + size] for i in range(0, len(inputs), size)]
    if sys.stderr.isatty() and len(chunks) > 1:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=len(inputs))
            for chunk in chunks:
                yield chunk
                bar.advance(task, len(chunk))
        return
    done, last = 0, time.monotonic()
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            note(f"{title}: {done:,} of {len(inputs):,}")


def summary(errors: int, total: int) -> int:
    """Says how many inputs could not be read; the exit code."""
    if errors:
        note(f"{errors:,} of {total:,} inputs could not be read; the column error says why")
    return 1 if errors else 0


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row for a table: probabilities as class_1, probability_1 ..."""
    values = {key: value for key, value in row.items() if key not in ("probabilities", "unlike", "error")}
    for i, (name, chance) in enumerate(row.get("probabilities", {}).items(), start=1):
        values |= {f"class_{i}": name, f"probability_{i}": chance}
    return values | {key: row[key] for key in ("unlike", "error") if key in row}


def write(path: Path, rows: list[dict[str, Any]], own: Callable[[list[dict[str, Any]]], Any] | None = None) -> None:
    """Rows as .csv, .jsonl or .parquet, or as a problem's `own` JSON. In .csv "; " stands between the members of a list."""
    if own:
        write_atomic(path, json.dumps(own(rows), ensure_ascii=False))
        return
    if path.suffix == ".jsonl":
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    tables = [flat(row) for row in rows]
    longest = max(tables, key=len)
    keys = [*dict.fromkeys([*longest, *(key for row in tables for key in row)])]
    keys.sort(key=lambda key: key == "error")  # which stands last
    columns = {key: [row.get(key) for row in tables] for key in keys}
    if path.suffix == ".parquet":
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), buffer)
        write_atomic(path, buffer.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(keys)
    writer.writerows([cell(row.get(key)) for key in keys] for row in tables)
    write_atomic(path, text.getvalue())


def cell(value: Any) -> Any:
    return "; ".join("-" if x is None else str(x) for x in value) if isinstance(value, list) else value
