"""Texts that are to be predicted: .txt files, columns of tables, and standard input, as the labelled texts of a run were read."""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ptmrun.data.modality import Input, InputRequest, Unreadable
from ptmrun.data.sources import tables
from ptmrun.data.sources.folders import STDIN, chosen
from ptmrun.data.sources.labels import mended
from ptmrun.data.sources.text import SUFFIXES, all_texts
from ptmrun.errors import UserError


class Wanted(NamedTuple):
    """A column that holds texts: its name, or where it has none given the `usual` ones, of which a table is to have one."""

    name: str | None
    usual: tuple[str, ...]


class Reading(NamedTuple):
    """How texts are read. documents: what of a .txt file is a text (file, lines or blank_lines); others: columns of other things;
    lists: a row may have a list of words; bare: of a .tsv file without these names, the first column is read, from line 1."""

    texts: Wanted
    seconds: Wanted | None = None
    documents: str = "lines"
    others: Collection[str | None] = ()
    lists: bool = False
    bare: bool = False
    encoding: str = "utf-8"
    errors: str = "strict"


def section(cfg: Any) -> Any:
    """The settings by which the labelled texts of a run were read, or where it has none those of its corpus."""
    return cfg.downstream if getattr(cfg.downstream, "root", None) else cfg.dataset


def pairs(cfg: Any) -> bool:
    return getattr(section(cfg), "pair_column", None) is not None


def given(value: Any) -> str | None:
    """A column that the config names, by name or number."""
    return None if value in (None, "auto") else str(value)


def of_run(request: InputRequest) -> Iterator[Input]:
    """As the run's own texts. Raises UserError where it is not clear what is to be read."""
    own = section(request.cfg)
    if request.pair_column is not None and not pairs(request.cfg):
        raise UserError(f"pair_column={request.pair_column}: this run was trained on single texts; leave it out")
    label, group = given(getattr(own, "label_column", None)), getattr(own, "group", None)
    usual = tuple(
        name for name in (request.facts.get("text_column", "").lower(), "text") if name
    )  # as in training, if it is there
    reading = Reading(
        Wanted(request.column or given(getattr(own, "text_column", None)), usual),
        Wanted(request.pair_column or given(own.pair_column), ()) if pairs(request.cfg) else None,
        documents(request, getattr(own, "documents", "lines")),
        (label or "label", group),
        encoding=getattr(own, "encoding", "utf-8"),
        errors=getattr(own, "errors", "strict"),
    )
    return texts(request, reading)


def documents(request: InputRequest, trained: str) -> str:
    """What of a .txt file is a text: as asked for, else as in training; where that was left to ptmrun, the file."""
    if request.documents != "auto":
        return request.documents
    return {"auto": "file", "rows": "lines"}.get(trained, trained)


def texts(request: InputRequest, reading: Reading, suffixes: Collection[str] = SUFFIXES) -> Iterator[Input]:
    """Texts, or pairs of them; suffixes: of the files that are read of a folder. Raises UserError where it is not clear what is
    to be read."""
    for path in chosen(request.names, suffixes, request.note, json=False):
        if path == STDIN:
            rows = objects(reading) if reading.seconds else lines(path, reading._replace(documents="lines"))
        elif not path.is_file():
            rows = iter([Input(str(path), Unreadable("no such file or folder"))])
        else:
            suffix = path.suffix.lower()
            rows = columns(path, reading, suffix) if suffix in tables.TABLES else lines(path, reading)
        yield from rows


def guarded(path: Path, rows: Iterator[Input]) -> Iterator[Input]:
    """Rows of a file, the last of them why the rest cannot be read where that is so."""
    try:
        yield from rows
    except UserError as error:
        yield Input(str(path), Unreadable(error.args[0]))


def lines(path: Path, reading: Reading) -> Iterator[Input]:
    """The texts of a file that is no table."""
    if reading.seconds:
        raise UserError(f"{path}: expected a table ({' '.join(tables.TABLES)}) with two columns of texts, as in training")
    if reading.documents == "file" and not path.read_bytes().strip():
        return iter([Input(str(path), Unreadable("is empty"))])
    rows = all_texts([path], reading.documents, reading.encoding, reading.errors, {})
    return guarded(path, (Input(row.where, row.text) for row in rows))


def objects(reading: Reading) -> Iterator[Input]:
    """Pairs from standard input: a JSON object a line."""
    names = [wanted.name or wanted.usual[0] for wanted in (reading.texts, reading.seconds) if wanted]
    each = partial(as_input, names=names, reading=reading)
    return guarded(STDIN, (each(where, row) for where, row in tables.json_rows(STDIN, reading.encoding, reading.errors)))


def columns(path: Path, reading: Reading, suffix: str) -> Iterator[Input]:
    """The texts of a table, or what is wrong with one of its rows."""
    header = not any(w and w.name and w.name.isdigit() for w in (reading.texts, reading.seconds))
    head = tables.Columns("", None, None, None, header or suffix not in tables.SEPARATED)
    try:
        most = None if suffix in tables.JSON else 100  # later rows may have other columns
        survey = tables.surveyed(path, head, reading.encoding, reading.errors, most, strict=False)
    except UserError as error:
        return iter([Input(str(path), Unreadable(error.args[0]))])
    bare = reading.bare and suffix == ".tsv" and reading.texts.name is None
    if bare and not {name.lower() for name in survey[0]} & set(reading.texts.usual):
        head, reading, survey = head._replace(header=False), reading._replace(texts=Wanted("1", ())), (["1"], ["1"])
    chosen_columns: list[str] = []
    for wanted in filter(None, (reading.texts, reading.seconds)):
        others = [*reading.others, *chosen_columns, reading.seconds.name if reading.seconds else None]
        chosen_columns.append(tables.column_of(path, survey, wanted.name, wanted.usual, others))
    used = head._replace(text=chosen_columns[0], second=chosen_columns[1] if reading.seconds else None)
    each = partial(as_input, names=chosen_columns, reading=reading)
    return guarded(path, (each(where, row) for where, row in tables.each_row(path, used, reading.encoding, reading.errors)))


def as_input(where: str, row: dict[str, Any] | UserError, names: list[str], reading: Reading) -> Input:
    if isinstance(row, UserError):
        return Input(where, Unreadable(row.args[0].removeprefix(f"{where}: ")))
    values = [row.get(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if value is None:
            return Input(where, Unreadable(f"has no {name}"))
        if not isinstance(value, str) and not (reading.lists and isinstance(value, list)):
            return Input(where, Unreadable(f"expected text in {name}, found {type(value).__name__}"))
    if reading.errors == "replace":
        values = [mended(v).replace("\0", "\ufffd") if isinstance(v, str) else v for v in values]
    return Input(where, tuple(values) if reading.seconds else values[0])
