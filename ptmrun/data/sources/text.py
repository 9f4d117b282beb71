"""Your own texts: .txt files, or tables (.csv, .tsv, .jsonl, .parquet) with a text a row, labelled or not."""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ptmrun.data.sources import TextPart, TextSource
from ptmrun.data.sources.imagefolder import SPLITS, files_below
from ptmrun.errors import UserError, nearest, printable

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


SUFFIXES = (".txt", *TABLES)


CHUNK = 2**20  # bytes read at a time


MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32's other one begins as UTF-16's


NO_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\b[DM]r\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bSt\.)"  # initials and titles


STOP = re.compile(
    r"[.!?]" + NO_ABBREVIATION + r"""["'”’»)\]]*(?=\s+["'“‘«(\[]?([^\W\d_]))"""
)  # a sentence's end; the letter that follows


class Row(NamedTuple):
    """A text and what belongs to it; `where` is what the user calls it: a file and line, or row."""

    where: str
    text: str
    second: str | None = None
    label: Any = None
    group: Any = None


def ends(prose: str) -> list[int]:
    """Where the sentences of prose end, at . ! ? before a capital letter; the last one left out."""
    return [match.end() for match in STOP.finditer(prose) if match[1].isupper()]


def read(options: Any, labelled: bool = False) -> TextSource:
    """Reads everything once, to find what is wrong with it, to count it and to take its fingerprint. With `labelled`, texts
    without labels are wrong."""
    if not options.root:
        raise UserError("dataset.root: a file or folder of texts is needed, as in dataset.root=texts")
    files = found(options.root)
    tables = {path.suffix.lower() != ".txt" for paths in files.values() for path in paths}
    if len(tables) > 1:
        raise UserError(f"dataset.root={options.root}: holds both .txt files and tables; point it at one of the two")
    if tables == {True}:
        if options.documents not in ("auto", "rows"):
            raise UserError(f"dataset.documents={options.documents}: each row of a table is a document; expected auto or rows")
        columns = Columns.choose(files, options, labelled)
        makers: dict[str, Callable[[], Iterator[Row]]] = {
            name: partial(all_rows, paths, columns, options.encoding, options.errors) for name, paths in files.items()
        }
        return gathered(makers, options.root, options.label_separator, options.errors, labelled=labelled)
    for key in ("pair_column", "label_column", "group"):
        if getattr(options, key) not in (None, "auto"):
            raise UserError(
                f"dataset.{key}={getattr(options, key)}: .txt files have no columns; expected a table ({' '.join(TABLES)})"
            )
    kind, notes = options.documents, []
    if kind == "rows":
        raise UserError("dataset.documents=rows: .txt files have no rows; expected auto, file, blank_lines or lines")
    if kind == "auto":
        kind = units(files["train"], options.encoding, options.errors)
        said = {"file": "each file", "blank_lines": "what stands between empty lines", "lines": "each line"}[kind]
        notes.append(f"{said} is a document (dataset.documents={kind})")
    classes = {} if options.label_column is None else folders(Path(options.root).expanduser(), files)
    if classes:
        notes.append("the folder of each file is its label (dataset.label_column=null: no labels)")
    makers = {name: partial(all_texts, paths, kind, options.encoding, options.errors, classes) for name, paths in files.items()}
    return gathered(makers, options.root, None, options.errors, notes, labelled=labelled)


KEY = re.compile(r"\bdataset\.(root|\w+_column|label_separator|group|documents|encoding|errors)\b")  # no file dataset.csv


@contextlib.contextmanager
def as_downstream(names: dict[str, str] | None = None) -> Iterator[None]:
    """For keys of a labelled problem: messages name these instead of a dataset's. `names`: what they are called there."""
    try:
        yield
    except UserError as error:
        known = names or {}
        lines = [re.sub(KEY, lambda m: f"downstream.{known.get(m[1], m[1])}", line) for line in error.args]
        raise UserError(*lines) from None


def found(root: str, suffixes: tuple[str, ...] = SUFFIXES) -> dict[str, list[Path]]:
    """The files of each split: folders or files named train, val and test; where none is named so, everything is train."""
    place = Path(root).expanduser()
    if place.is_file():
        if place.suffix.lower() not in suffixes:
            raise UserError(f"dataset.root={root}: expected a file ending in {' '.join(suffixes)}, or a folder of such files")
        return {"train": [place]}
    if not place.is_dir():
        raise UserError(f"dataset.root={root}: no such file or folder")
    files = files_below(place, suffixes)
    if not files:
        raise UserError(f"dataset.root={root}: no texts there (files ending in {' '.join(suffixes)})")
    return by_split(place, files) or {"train": files}


def folders(place: Path, files: dict[str, list[Path]]) -> dict[Path, str]:
    """The class folder of every file, below that of its split; empty where some lie in none, or all in one."""
    found = {}
    for path in chain(*files.values()):
        inside = path.relative_to(place).parts if path != place else (path.name,)
        if inside[0].lower() in SPLITS:
            inside = inside[1:]
        if len(inside) > 1:
            found[path] = inside[0]
    whole = len(found) == sum(map(len, files.values()))
    return found if whole and len(set(found.values())) > 1 else {}


def by_split(place: Path, files: list[Path]) -> dict[str, list[Path]]:
    """The files below a folder by split, as their own name says, or that of a folder in it; where no name says anything,
    nothing.

    Raises UserError where some say of which split they are and others do not (a README may be beside them), or none is train.
    """
    splits: dict[str, list[Path]] = {}
    others = []
    for path in files:
        first = path.relative_to(place).parts[0]
        name = re.sub(r"-\d+-of-\d+$", "", path.stem) if first == path.name else first
        if name.lower() in SPLITS:
            splits.setdefault(SPLITS[name.lower()], []).append(path)
        elif name.lower() != "readme":
            others.append(path)
    if not splits:
        return {}
    named = next(path for paths in splits.values() for path in paths).relative_to(place)
    if others:
        unnamed = ", ".join(printable(str(path.relative_to(place))) for path in others[:5])
        raise UserError(
            f"{place}: {printable(str(named))} says of which split it is, but not {unnamed}; call files, or the folders that "
            "they are in, train, val or test, or take them away"
        )
    if "train" not in splits:
        raise UserError(
            f"{place}: there is {printable(str(named))}; expected a file or folder called train beside it, or the file itself"
        )
    return splits


def lines(path: Path, encoding: str, errors: str) -> Iterator[str]:
    """The lines of a file without their ends, a chunk of it in memory at a time; else see `decoded`."""
    rest: list[str] = []
    for text in decoded(path, encoding, errors):
        first, *more = text.split("\n")
        rest.append(first)
        if more:
            yield "".join(rest)
            yield from more[:-1]
            rest = more[-1:]
    if last := "".join(rest):
        yield last


def decoded(path: Path, encoding: str, errors: str) -> Iterator[str]:
    """The text of a file, chunk by chunk. Any line ends, which become \\n, and a byte order mark are fine.

    Raises UserError for bytes that are not text, unless errors=replace.
    """
    try:
        if not getattr(codecs.lookup(encoding), "_is_text_encoding", True):
            raise LookupError
    except LookupError:
        raise UserError(f"dataset.encoding={encoding}: no such encoding; expected one such as utf-8, latin-1 or utf-16") from None
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    ends_of_lines = io.IncrementalNewlineDecoder(None, translate=True)
    place = 0
    try:
        with open(path, "rb") as file:
            while True:
                data = file.read(CHUNK)
                held = len(decoder.getstate()[0])
                try:
                    text = decoder.decode(data, final=not data)
                except UnicodeError as error:
                    byte = place - held + getattr(error, "start", 0)
                    raise UserError(
                        f"{path}: byte {byte} is not {encoding}; name its dataset.encoding (such as latin-1 or utf-16), "
                        "or set dataset.errors=replace"
                    ) from None
                if "\0" in text:
                    if errors == "strict":
                        byte = place - held + len(text[: text.index("\0")].encode(encoding))
                        if place or not data.startswith(MARKS):
                            byte -= len("".encode(encoding))  # a mark that `encode` wrote and the file has not there
                        raise UserError(
                            f"{path}: byte {byte} is NUL, so this is no text; remove it, or set dataset.errors=replace"
                        )
                    text = text.replace("\0", "\ufffd")
                if place == 0:
                    text = text.removeprefix("\ufeff")
                yield ends_of_lines.decode(text, final=not data)
                if not data:
                    break
                place += len(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def units(paths: list[Path], encoding: str, errors: str) -> str:
    """What documents=auto is: see conf/dataset/text.yaml."""
    if len(paths) > 1:
        return "file"
    seen = gap = False
    for line in lines(paths[0], encoding, errors):
        if line.strip():
            if gap:
                return "blank_lines"
            seen = True
        else:
            gap = seen
    return "lines"


def all_texts(paths: list[Path], kind: str, encoding: str, errors: str, classes: dict[Path, str]) -> Iterator[Row]:
    """The documents of .txt files, with the class of the file where it has one."""
    for path in paths:
        block, label = list[str](), classes.get(path)
        for number, line in enumerate(lines(path, encoding, errors), start=1):
            if kind == "lines":
                if text := line.strip():
                    yield Row(f"{path}:{number}", text, label=label)
            elif kind == "file" or line.strip():
                block.append(line)
            elif block:
                yield Row(f"{path}:{number}", "\n".join(block), label=label)
                block = []
        text = "\n".join(block).strip("\n")
        if text or kind == "file":  # an empty file is an empty text, which is counted and left out as in tables
            yield Row(str(path), text, label=label)


class Columns(NamedTuple):
    """The columns of tables that are used, by name; without a header line, by number."""

    text: str
    second: str | None
    label: str | None
    group: str | None
    header: bool

    @staticmethod
    def choose(files: dict[str, list[Path]], options: Any, labelled: bool) -> "Columns":
        """What the options say and the first table has; a label too if they must be `labelled`. Raises UserError for what a table
        lacks."""
        text, second, group = options.text_column, options.pair_column, options.group
        header, label = not isinstance(text, int), options.label_column
        first = files["train"][0]
        if not header and (tables := [p for p in chain(*files.values()) if p.suffix.lower() not in (".csv", ".tsv")]):
            raise UserError(f"dataset.text_column={text}: {tables[0]} has names for its columns; expected one of them")
        wanted = {k: None if c in (None, "auto") else str(c) for k, c in (("text", text), ("pair", second), ("label", label))}
        head = Columns("", None, None, None, header)
        names, textual = surveyed(first, head, options.encoding, options.errors)
        if label == "auto" and (labelled or (header and "label" in names)):
            wanted["label"] = "label"
        if text == "auto":
            taken = {wanted["pair"], wanted["label"], group}
            fits = ["text"] if "text" in names else [n for n in textual if n not in taken]
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
            if path.suffix.lower() == ".jsonl" and not set(keys.values()) - {None} <= set(there):  # later rows may have it
                there = surveyed(path, head, options.encoding, options.errors, None)[0]
            for key, name in keys.items():
                if name is not None and name not in there:
                    known = f"it has: {shortened(there)}" if there else "it is empty"
                    raise UserError(f"dataset.{key}={name}: {path} has no such column; {known}")
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


def number(value: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", value, re.ASCII) is not None


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
    if suffix == ".jsonl":
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
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be read after row {count}: {' '.join(str(error).split())}") from None
    else:
        quoted = suffix == ".csv" or quotes(path, encoding, errors)
        yield from separated_rows(path, "," if suffix == ".csv" else "\t", quoted, columns.header, encoding, errors)


def parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is no parquet file: {' '.join(str(error).split())}") from None


def json_rows(path: Path, encoding: str, errors: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line_number, line in enumerate(lines(path, encoding, errors), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{line_number}: is no JSON: {error}") from None
        except RecursionError:
            raise UserError(f"{path}:{line_number}: is JSON nested too deeply") from None
        if not isinstance(row, dict):
            raise UserError(f'{path}:{line_number}: expected an object such as {{"text": ...}}, found {printable(line)[:60]}')
        yield f"{path}:{line_number}", row


def quotes(path: Path, encoding: str, errors: str) -> bool:
    """Whether a .tsv file has its fields in quotation marks as .csv files have; else a quotation mark is one of the text."""
    try:
        for _ in separated_rows(path, "\t", True, True, encoding, errors):
            pass
    except UserError:
        return False
    return True


def separated_rows(
    path: Path, separator: str, quoted: bool, header: bool, encoding: str, errors: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # the module's own is 131,072 characters
    rows = csv.reader(
        (f"{line}\n" for line in lines(path, encoding, errors)),
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
                        f"{path}:{rows.line_num}: two columns have the same name: {printable(', '.join(names))[:200]}"
                    )
                if header:
                    continue
            if len(row) != len(names):
                raise UserError(f"{path}:{rows.line_num}: {len(row)} fields where the first line has {len(names)}")
            yield f"{path}:{rows.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: is no {path.suffix[1:]}: {error}") from None


def kept(rows: Callable[[], Iterator[Row]], errors: str) -> Iterator[str]:
    """The texts of rows that have one (in a pair, two)."""
    for row in rows():
        if row.text.strip() and (row.second is None or row.second.strip()):
            yield row.text if errors == "strict" else mended(row.text)


def mended(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, as question mark."""
    return text.encode("utf-8", "replace").decode()


def gathered(
    makers: dict[str, Callable[[], Iterator[Row]]],
    root: str,
    separator: str | None,
    errors: str,
    notes: Iterable[str] = (),
    classes: Iterable[str] = (),
    labelled: bool = False,
) -> TextSource:
    """Splits that stream rows -> the source. Class names are sorted unless given; labels come as text, numbers or lists."""
    said, columns = list(notes), {name: Scan(rows, errors, separator) for name, rows in makers.items()}
    for name, scan in columns.items():
        if not scan.count:
            what = f"all {scan.skipped} texts are empty" if scan.skipped else "no text there"
            raise UserError(f"dataset.root={root}: {what} in the {name} split")
        if scan.skipped > scan.count and (scan.labels or scan.seconds):  # a corpus may have a column that few rows have
            raise UserError(
                f"{scan.empty}: has no text, as {scan.skipped:,} of {scan.skipped + scan.count:,} in the {name} split; "
                "name the column of the texts (dataset.text_column), or take the empty ones away"
            )
        if scan.skipped:
            said.append(f"{scan.skipped} empty texts of the {name} split are skipped, the first at {scan.empty}")
    names = list(classes) or sorted(columns["train"].first, key=lambda c: (not number(c), float(c) if number(c) else 0.0, c))
    if labelled and not names:
        raise UserError(
            f"dataset.root={root}: no text of the training split has a label; expected a column of them (dataset.label_column), "
            "or .txt files in a folder for each class"
        )
    for name, scan in columns.items():
        if strange := [c for c in scan.first if c not in names]:
            raise UserError(
                f"{scan.first[strange[0]]}: the label {printable(strange[0])} of the {name} split is none of the training split"
                f"{nearest(printable(strange[0]), map(printable, names))}"
            )
    index = {c: i for i, c in enumerate(names)}
    several = any(scan.several for scan in columns.values())
    parts, digest = {}, hashlib.sha256()
    for name, scan in columns.items():
        labels = scan.array(index, several) if names else None
        groups = np.array(scan.groups) if scan.groups else None
        parts[name] = TextPart(
            partial(kept, makers[name], errors), scan.count, scan.size, scan.fingerprint, labels, scan.seconds or None, groups
        )
        digest.update(json.dumps([name, scan.fingerprint, scan.labels, scan.seconds, scan.groups]).encode())
    digest.update(json.dumps(names).encode())
    return TextSource(parts, names, digest.hexdigest(), said)


class Scan:
    """What one pass over the rows of a split finds."""

    def __init__(self, rows: Callable[[], Iterator[Row]], errors: str, separator: str | None):
        self.count = self.size = self.skipped = 0
        self.labels: list[list[str]] = []
        self.seconds: list[str] = []
        self.groups: list[str] = []
        self.first: dict[str, str] = {}  # class -> where it was seen first
        self.empty = ""  # where the first empty text is
        self.several = separator is not None
        digest = hashlib.sha256()
        for row in rows():
            if not row.text.strip() or (row.second is not None and not row.second.strip()):
                self.skipped, self.empty = self.skipped + 1, self.empty or row.where
                continue
            try:
                data = row.text.encode("utf-8", errors)
                if row.second is not None:
                    self.seconds.append(row.second.encode("utf-8", errors).decode())
            except UnicodeEncodeError:
                raise UserError(
                    f"{row.where}: half a surrogate pair (\\ud800 ...); mend it, or set dataset.errors=replace"
                ) from None
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
            self.count += 1
            self.size += len(data)
            if row.group is not None:
                self.groups.append(str(row.group))
            if row.label is not None:
                self.several |= isinstance(row.label, list)
                self.labels.append(self.names(row, separator))
        self.fingerprint = digest.hexdigest()

    def names(self, row: Row, separator: str | None) -> list[str]:
        """The classes of a row."""
        if isinstance(row.label, list):
            found = [class_name(c, row.where) for c in row.label]
        elif separator is not None:
            found = [c.strip() for c in class_name(row.label, row.where).split(separator) if c.strip()]
        else:
            found = [class_name(row.label, row.where)]
        if not all(found):
            raise UserError(
                f"{row.where}: the label is empty; give it one, or remove the row; a corpus needs none (label_column=null)"
            )
        for name in found:
            self.first.setdefault(name, row.where)
        return found

    def array(self, index: dict[str, int], several: bool) -> np.ndarray:
        """int64 [N], or bool [N, classes] where a text may have several classes."""
        if not several:
            return np.array([index[c] for [c] in self.labels], dtype=np.int64)
        labels = np.zeros((self.count, len(index)), dtype=bool)
        for row, names in enumerate(self.labels):
            labels[row, [index[c] for c in names]] = True
        return labels


def class_name(label: Any, where: str) -> str:
    """A label as text; NaN, which tables have where there is none, is empty."""
    if isinstance(label, dict | list):
        raise UserError(f"{where}: expected a label, found {printable(repr(label))[:80]}")
    return "" if isinstance(label, float) and math.isnan(label) else str(label).strip()
