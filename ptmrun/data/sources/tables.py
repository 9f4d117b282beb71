"""Tables of texts: .csv, .tsv, .jsonl, .json and .parquet."""

import csv
import json
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ptmrun.data.sources.dialect import NAMES, alike, folded, is_row, separator
from ptmrun.data.sources.folders import nfc
from ptmrun.data.sources.labels import Flags, bit
from ptmrun.data.sources.rows import Row, number
from ptmrun.data.sources.textfile import lines
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
    quoted: bool = False  # of .tsv files: fields stand in quotation marks, as those of .csv files do
    flags: tuple[str, ...] = ()  # instead of a label: columns of 0 and 1, one a class

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
        tsv = [path for path in chain(*files.values()) if path.suffix.lower() == ".tsv"]
        tabbed = [path for path in tsv if separator(path, header, options.encoding, options.errors)[0] == "\t"]
        quoted = quotes(tabbed, header, options.encoding, options.errors, notes)
        head = Columns("", None, None, None, header, quoted)
        names, textual = surveyed(first, head, options.encoding, options.errors)
        flags = flag_columns(first, head, options, names, labelled)
        if flags:
            wanted["label"] = None
            notes.append(f"the labels are columns of 0 and 1: {shortened(flags)}")
        elif label == "auto" and (labelled or (header and alike("label", names))):
            wanted["label"] = "label"
        wanted |= {"group": group}
        for key, name in wanted.items():
            if name is not None and header and name not in names and (same := alike(name, names)):
                notes.append(f"{first.name}: its column {printable(same)} is taken for {printable(name)}")
                wanted[key] = same
        group = wanted["group"]
        if text == "auto":
            taken = {wanted["pair"], wanted["label"], group, *flags}
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
        chosen = Columns(wanted["text"], wanted["pair"], wanted["label"], group, header, quoted, tuple(flags))
        keys = [("text_column", chosen.text), ("pair_column", chosen.second), ("label_column", chosen.label), ("group", group)]
        keys += [("label_column", name) for name in flags]
        for key, name, others in (("pair_column", chosen.second, chosen[:1]), ("label_column", chosen.label, chosen[:2])):
            if name is not None and name in others:
                raise UserError(f"dataset.{key}={name}: is the column of the texts too; expected another, or null")
        for path in chain(*files.values()):
            there = names if path == first else surveyed(path, head, options.encoding, options.errors)[0]
            if path.suffix.lower() in JSON and not {name for _, name in keys} - {None} <= set(there):  # later rows may have it
                there = surveyed(path, head, options.encoding, options.errors, None)[0]
            for key, name in keys:
                if name is not None and name not in there:
                    known = f"it has: {shortened(there)}" if there else "it is empty"
                    raise UserError(f"dataset.{key}={name}: {path} has no such column; {known}")
            if path.suffix.lower() in SEPARATED:
                mark, _ = separator(path, header, options.encoding, options.errors)
                if mark != ("," if path.suffix.lower() == ".csv" else "\t"):
                    notes.append(f"{path.name}: its fields stand between {NAMES.get(mark, printable(mark))}")
        if header and chosen.label:
            for path in (p for p in chain(*files.values()) if p.suffix.lower() == ".csv"):
                notes += swallowed(path, chosen, options.encoding, options.errors)
        return chosen


def flag_columns(first: Path, head: Columns, options: Any, names: list[str], labelled: bool) -> list[str]:
    """The columns of 0 and 1 that say which classes a text has: those that label_column lists, with commas, or, where labels must
    be there and no column is called so, all of them."""
    wanted = options.label_column
    if isinstance(wanted, str) and wanted != "auto" and "," in wanted and not alike(wanted, names):
        listed = [same for name in wanted.split(",") if (same := alike(name.strip(), names))]
        return listed if len(listed) == wanted.count(",") + 1 else []
    if wanted != "auto" or not labelled or alike("label", names) or not head.header:
        return []
    known = [alike(str(name), names) for name in ("text", options.text_column, options.pair_column, options.group)]
    others = [n for n in names if n not in known]
    if len(others) < 2:
        return []
    rows = [row for _, row in islice(table(first, head._replace(flags=tuple(others)), options.encoding, options.errors), 100)]
    fits = [n for n in others if rows and all(bit(row.get(n)) is not None for row in rows)]
    return fits if len(fits) > 1 else []


def shortened(names: list[str]) -> str:
    """A list of columns for a message."""
    return ", ".join(printable(n if len(n) <= 40 else f"{n[:40]}...") for n in names[:30])


def surveyed(
    path: Path, head: Columns, encoding: str, errors: str, most: int | None = 100, strict: bool = True
) -> tuple[list[str], list[str]]:
    """The columns of a table, and those of them that hold texts: of its first rows (`most`, or all), some value is no number.
    Unless `strict`, rows that cannot be read are passed over."""
    if path.suffix.lower() == ".parquet":
        schema = parquet(path).schema_arrow
        return schema.names, [field.name for field in schema if textual(field.type)]
    texts: Counter[str] = Counter()
    names: dict[str, None] = {}
    rows = each_row(path, head, encoding, errors)
    read = strictly(rows) if strict else ((where, row) for where, row in rows if not isinstance(row, UserError))
    for _, row in islice(read, most):
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
            if columns.flags:
                values[2] = Flags(nfc(name) for name in columns.flags if flag(row.get(name), name, where))
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


def flag(value: Any, name: str, where: str) -> bool:
    if (on := bit(value)) is None:
        raise UserError(f"{where}: {printable(name)}: expected 0 or 1, found {printable(str(value))[:60]}")
    return on


def column_of(
    path: Path,
    survey: tuple[list[str], list[str]],
    wanted: str | None,
    usual: Collection[str],
    others: Collection[str | None] = (),
) -> str:
    """The column of a table, as it is `surveyed`, that is `wanted`, or the first of the `usual` names that it has, whatever their
    case, or else the only one that holds texts, but for the `others`. Raises UserError where there is none, or more than one."""
    names, textual = survey
    if wanted is not None:
        if (same := alike(wanted, names)) is None:
            raise UserError(f"{path}: has no column {wanted}; it has: {shortened(names)}; name another, as in column=NAME")
        return same
    known = {folded(name): name for name in names}
    fits = [known[folded(name)] for name in usual if folded(name) in known][:1] or [
        name for name in textual if name not in others
    ]
    if len(fits) != 1:
        raise UserError(f"{path}: which column is to be read? Name it, as in column=NAME; it has: {shortened(names)}")
    return fits[0]


def table(path: Path, columns: Columns, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, {column: value}) of each row; of a parquet file only the columns that are used, if any is. Raises UserError for a
    row that cannot be read."""
    return strictly(each_row(path, columns, encoding, errors))


def strictly(rows: Iterator[tuple[str, dict[str, Any] | UserError]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, row in rows:
        if isinstance(row, UserError):
            raise row
        yield where, row


def each_row(path: Path, columns: Columns, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """As `table`, but with what is wrong with a row in its place, where the rows after it can still be read."""
    suffix = path.suffix.lower()
    if suffix in JSON:
        yield from json_rows(path, encoding, errors)
    elif suffix == ".parquet":
        file, count = parquet(path), 0
        try:
            for batch in file.iter_batches(1024, columns=list(dict.fromkeys(c for c in (*columns[:4], *columns.flags) if c))):
                for cells in zip(*batch.columns, strict=True):
                    count += 1
                    yield f"{path} row {count}", dict(zip(batch.schema.names, (cell.as_py() for cell in cells), strict=True))
        except UnicodeDecodeError:
            raise UserError(f"{path} row {count}: is not UTF-8, as texts in parquet files are; write the file again") from None
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # dates that Python does not have, among others
            raise UserError(f"{path}: cannot be read after row {count}: {' '.join(str(error).split())}") from None
    else:
        mark, before = separator(path, columns.header, encoding, errors)
        quoted = mark != "\t" or suffix == ".csv" or columns.quoted
        yield from separated_rows(path, mark, quoted, columns.header, encoding, errors, before)


def parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, ValueError) as error:  # names of columns that are not UTF-8 among others
        raise UserError(f"{path}: is no parquet file: {' '.join(str(error).split())}") from None


def json_rows(path: Path, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    """Of an object a line, or of a list of objects."""
    begun, rest = False, lines(path, encoding, errors)
    for line_number, line in enumerate(rest, start=1):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from listed_rows(path, "\n".join([line, *rest]))
            return
        begun = True
        where = f"{path}:{line_number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            row = UserError(f"{where}: is no JSON: {error}")
        except RecursionError:
            row = UserError(f"{where}: is JSON nested too deeply")
        if not isinstance(row, dict | UserError):
            row = UserError(f'{where}: expected an object such as {{"text": ...}}, found {printable(line)[:60]}')
        yield where, row


def listed_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: is JSON nested too deeply") from None
    for place, row in enumerate(rows, start=1):
        where = f"{path} row {place}"
        if not isinstance(row, dict):
            row = UserError(f'{where}: expected an object such as {{"text": ...}}, found {printable(repr(row))[:60]}')
        yield where, row


def swallowed(path: Path, columns: Columns, encoding: str, errors: str) -> list[str]:
    """That lines of a .csv file which stand in quotation marks look like rows, down to their label: a mark that is one of the
    text begins a field that ends at the next."""
    known, lost = set[str](), list[tuple[str, str]]()
    mark, before = separator(path, True, encoding, errors)
    for where, row in strictly(separated_rows(path, mark, True, True, encoding, errors, before)):
        place = list(row).index(str(columns.label))
        known.add(row[str(columns.label)].strip())
        for k, cell in enumerate(row.values()):
            for j, line in enumerate(cell.split("\n")[:-1]):
                fields = [""] * (0 if j else k) + line.split(mark)
                if len(fields) == len(row) and fields[place].strip():
                    lost.append((where, fields[place].strip()))
    if not (wheres := [where for where, label in lost if label in known]):
        return []
    what = (
        f"{len(wheres):,} lines that stand inside of quotation marks look like rows, the first in that which ends at {wheres[0]}"
    )
    return [f"Warning: {what}; a mark of a text must be doubled, and its field in marks"]


def quotes(paths: list[Path], header: bool, encoding: str, errors: str, notes: list[str]) -> bool:
    """Whether the .tsv files of a data set have fields in quotation marks as .csv files have; else a mark is one of the text,
    which is said. They have where that fits each of them, so that splits are read alike."""
    found = [fits for path in paths if (fits := around(path, header, encoding, errors)) is not None]
    if found and not all(found):
        notes.append("the quotation marks in .tsv files are taken as marks of the texts")
    return bool(found) and all(found)


def around(path: Path, header: bool, encoding: str, errors: str) -> bool | None:
    """Whether the quotation marks of a .tsv file stand around its fields; None where it has none.

    Where every line has as many fields as the first, marks have no need to be around any: they are where those inside are
    doubled, or all fields of a column have them. Else some field must go over several lines, or hold a tab.
    """
    seen: list[Counter[str]] = []
    stray = uneven = False
    _, before = separator(path, header, encoding, errors)
    for line in islice(lines(path, encoding, errors), before, None):
        if not line:
            continue
        fields, first = line.split("\t"), not seen
        seen = seen or [Counter[str]() for _ in fields]
        uneven |= len(fields) != len(seen)
        for field, counts in zip(fields, seen, strict=False):
            bare = field[1:-1].replace('""', "")
            marked = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in bare
            stray |= '"' in field and not marked
            if first and header:
                counts["header"] += marked
            elif field:
                counts.update(all=1, marked=marked, doubled=marked and len(bare) + 2 < len(field))
    if not (stray or any(counts["marked"] + counts["header"] for counts in seen)):
        return None
    if uneven:
        return readable(path, before, encoding, errors)
    return not stray and all(counts["marked"] in (0, counts["doubled"], counts["all"]) for counts in seen)


def readable(path: Path, before: int, encoding: str, errors: str) -> bool:
    """Whether a .tsv file is a table where its marks stand around fields, and none of these swallows rows: goes over several
    lines and tabs."""
    try:
        rows = strictly(separated_rows(path, "\t", True, False, encoding, errors, before))
        return not any("\t" in cell and "\n" in cell for _, row in rows for cell in row.values())
    except UserError:
        return False


def separated_rows(
    path: Path, separator: str, quoted: bool, header: bool, encoding: str, errors: str, before: int = 0
) -> Iterator[tuple[str, dict[str, Any] | UserError]]:
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
            where = f"{path}:{before + rows.line_num}"
            if len(row) != len(names):
                marks = "" if quoted or '"' not in "".join(row) else "; quotation marks are taken as marks of the texts"
                yield where, UserError(f"{where}: {len(row)} fields where the first line has {len(names)}{marks}")
                continue
            yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{before + rows.line_num}: is no {path.suffix[1:]}: {error}") from None
