"""Tables of texts: .csv, .tsv, .jsonl, .json and .parquet."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ptmrun.data.sources.dialect import NAMES, alike, is_row, separator
from ptmrun.data.sources.rows import Row, number
from ptmrun.data.sources.textfile import decoded, lines
from ptmrun.errors import UserError, printable

SEPARATED = (".csv", ".tsv")
JSON = (".jsonl", ".ndjson", ".json")
TABLES = (*SEPARATED, *JSON, ".parquet")


class Columns(NamedTuple):
    """The columns of tables that are used, by name; without a header line, by number."""

    text: str
    second: str | None
    label: str | None
    group: str | None
    header: bool

    @staticmethod
    def choose(files: dict[str, list[Path]], options: Any, labelled: bool, notes: list[str]) -> "Columns":
        """What the options say and the first table has; a label too if they must be `labelled`. Says in `notes` what it took for
        what. Raises UserError for what a table lacks."""
        text, second, group = options.text_column, options.pair_column, options.group
        header, label = not isinstance(text, int), options.label_column
        first = files["train"][0]
        if not header and (tables := [p for p in chain(*files.values()) if p.suffix.lower() not in SEPARATED]):
            raise UserError(f"dataset.text_column={text}: {tables[0]} has names for its columns; expected one of them")
        wanted = {k: None if c in (None, "auto") else str(c) for k, c in (("text", text), ("pair", second), ("label", label))}
        head = Columns("", None, None, None, header)
        names, textual = surveyed(first, head, options.encoding, options.errors)
        if label == "auto" and (labelled or (header and alike("label", names))):
            wanted["label"] = "label"
        wanted |= {"group": group}
        for key, name in wanted.items():
            if name is not None and header and name not in names and (same := alike(name, names)):
                notes.append(f"{first.name}: its column {printable(same)} is taken for {printable(name)}")
                wanted[key] = same
        group = wanted["group"]
        if text == "auto":
            taken = {wanted["pair"], wanted["label"], group}
            called = alike("text", names)
            if first.suffix.lower() in SEPARATED and not called:
                sample = [row for _, row in islice(table(first, head, options.encoding, options.errors), 100)]
                if is_row(names, sample, {n for n in names if number(n)}):
                    raise UserError(
                        f"{first}: its first line ({shortened(names)}) looks like a row, not like the names of columns; put a "
                        "line of names before it, or give numbers: dataset.text_column=1 is the first column, "
                        "dataset.label_column=2 the second; if these are names, name the column of texts"
                    )
            fits = [called] if called else [n for n in textual if n not in taken]
            if len(fits) != 1:
                if not names:
                    raise UserError(f"{first}: has no rows")
                raise UserError(
                    f"dataset.text_column: {first} has {'several columns' if fits else 'no column'} of texts; "
                    f"name it: {shortened(fits or names)}; without a header line, 1 is the first"
                )
            wanted["text"] = fits[0]
        assert wanted["text"]
        chosen = Columns(wanted["text"], wanted["pair"], wanted["label"], group, header)
        keys = {"text_column": chosen.text, "pair_column": chosen.second, "label_column": chosen.label, "group": group}
        for key, name, others in (("pair_column", chosen.second, chosen[:1]), ("label_column", chosen.label, chosen[:2])):
            if name is not None and name in others:
                raise UserError(f"dataset.{key}={name}: is the column of the texts too; expected another, or null")
        for path in chain(*files.values()):
            there = names if path == first else surveyed(path, head, options.encoding, options.errors)[0]
            if path.suffix.lower() in JSON and not set(keys.values()) - {None} <= set(there):  # later rows may have it
                there = surveyed(path, head, options.encoding, options.errors, None)[0]
            for key, name in keys.items():
                if name is not None and name not in there:
                    known = f"it has: {shortened(there)}" if there else "it is empty"
                    raise UserError(f"dataset.{key}={name}: {path} has no such column; {known}")
            if path.suffix.lower() in SEPARATED:
                mark, _ = separator(path, header, options.encoding, options.errors)
                if mark != ("," if path.suffix.lower() == ".csv" else "\t"):
                    notes.append(f"{path.name}: its fields stand between {NAMES.get(mark, printable(mark))}")
        return chosen


def shortened(names: list[str]) -> str:
    """A list of columns for a message."""
    return ", ".join(printable(n if len(n) <= 40 else f"{n[:40]}...") for n in names[:30])


def surveyed(path: Path, head: Columns, encoding: str, errors: str, most: int | None = 100) -> tuple[list[str], list[str]]:
    """The columns of a table, and those of them that hold texts: of its first rows (`most`, or all), some value is no number."""
    if path.suffix.lower() == ".parquet":
        schema = parquet(path).schema_arrow
        return schema.names, [field.name for field in schema if textual(field.type)]
    texts: Counter[str] = Counter()
    names: dict[str, None] = {}
    for _, row in islice(table(path, head, encoding, errors), most):
        names |= dict.fromkeys(row)
        texts.update(name for name, value in row.items() if isinstance(value, str) and value.strip() and not number(value))
    return list(names), [name for name in names if texts[name]]


def textual(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def all_rows(paths: list[Path], columns: Columns, encoding: str, errors: str) -> Iterator[Row]:
    """The rows of tables, empty texts among them."""
    for path in paths:
        for where, row in table(path, columns, encoding, errors):
            values: list[Any] = [None if name is None else "" if row.get(name) is None else row[name] for name in columns[:4]]
            if any(isinstance(value, str) and "\0" in value for value in values):
                if errors == "strict":
                    raise UserError(f"{where}: holds NUL (\\u0000), so this is no text; remove it, or set dataset.errors=replace")
                values = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
            for name, value in zip(columns[:2], values[:2], strict=False):
                if not isinstance(value, str | None):
                    raise UserError(f"{where}: expected text in {name}, found {printable(repr(value))[:80]}")
            if values[3] == "":
                raise UserError(f"dataset.group={columns.group}: {where} has no value")
            yield Row(where, *values)


def table(path: Path, columns: Columns, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, {column: value}) of each row; of a parquet file only the columns that are used, if any is."""
    suffix = path.suffix.lower()
    if suffix in JSON:
        yield from json_rows(path, encoding, errors)
    elif suffix == ".parquet":
        file, count = parquet(path), 0
        try:
            for batch in file.iter_batches(1024, columns=list(dict.fromkeys(c for c in columns[:4] if c))):
                for cells in zip(*batch.columns, strict=True):
                    count += 1
                    yield f"{path} row {count}", dict(zip(batch.schema.names, (cell.as_py() for cell in cells), strict=True))
        except UnicodeDecodeError:
            raise UserError(f"{path} row {count}: is not UTF-8, as texts in parquet files are; write the file again") from None
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # dates that Python does not have, among others
            raise UserError(f"{path}: cannot be read after row {count}: {' '.join(str(error).split())}") from None
    else:
        mark, before = separator(path, columns.header, encoding, errors)
        quoted = mark != "\t" or suffix == ".csv" or quotes(path, encoding, errors)
        yield from separated_rows(path, mark, quoted, columns.header, encoding, errors, before)


def parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:  # names of columns that are not UTF-8 among others
        raise UserError(f"{path}: is no parquet file: {' '.join(str(error).split())}") from None


def json_rows(path: Path, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of an object a line, or of a list of objects."""
    begun = False
    for line_number, line in enumerate(lines(path, encoding, errors), start=1):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from listed_rows(path, encoding, errors)
            return
        begun = True
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{line_number}: is no JSON: {error}") from None
        except RecursionError:
            raise UserError(f"{path}:{line_number}: is JSON nested too deeply") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}:{line_number}: expected an object such as {{"text": ...}}, found {printable(line)[:60]}')
        yield f"{path}:{line_number}", row


def listed_rows(path: Path, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads("".join(decoded(path, encoding, errors)))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: is JSON nested too deeply") from None
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f'{path} row {place}: expected an object such as {{"text": ...}}, found {printable(repr(row))[:60]}')
        yield f"{path} row {place}", row


def quotes(path: Path, encoding: str, errors: str) -> bool:
    """Whether a .tsv file has its fields in quotation marks as .csv files have; else a quotation mark is one of the text."""
    try:
        for _ in separated_rows(path, "\t", True, True, encoding, errors):
            pass
    except UserError:
        return False
    return True


def separated_rows(
    path: Path, separator: str, quoted: bool, header: bool, encoding: str, errors: str, before: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`before`: lines before the first of the table."""
    csv.field_size_limit(2**31 - 1)  # the module's own is 131,072 characters
    rows = csv.reader(
        (f"{line}\n" for line in islice(lines(path, encoding, errors), before, None)),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        strict=True,
    )
    names: list[str] | None = None
    try:
        for row in rows:
            if not row:
                continue
            if names is None:
                names = row if header else [str(i) for i in range(1, len(row) + 1)]
                if len(set(names)) < len(names):
                    raise UserError(
                        f"{path}:{before + rows.line_num}: two columns have the same name: {printable(', '.join(names))[:200]}"
                    )
                if header:
                    continue
            if len(row) != len(names):
                raise UserError(f"{path}:{before + rows.line_num}: {len(row)} fields where the first line has {len(names)}")
            yield f"{path}:{before + rows.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{before + rows.line_num}: is no {path.suffix[1:]}: {error}") from None
