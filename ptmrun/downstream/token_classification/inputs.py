"""Sentences that are to be tagged: column files, or sentences whose words stand between spaces."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptmrun.data.modality import Input, InputRequest, Unreadable
from ptmrun.data.sources.folders import STDIN, chosen, nfc
from ptmrun.data.sources.tables import TABLES
from ptmrun.data.text import spans
from ptmrun.data.text.inputs import Reading, Wanted, texts
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.token_classification import columns as column_files
from ptmrun.downstream.token_classification.columns import COMMENT, DOCUMENT, MARKED, SUFFIXES, Sentence, cells_of
from ptmrun.downstream.token_classification.read import split_of
from ptmrun.downstream.token_classification.split import Sentences
from ptmrun.errors import UserError

COLUMN_FILES = {*SUFFIXES} - {".txt", ".tsv"}


def inputs(request: InputRequest, setup: ProblemSetup) -> Iterator[Input]:
    """Lists of words. A .txt or .tsv file is a column file where it has the columns that training wants and a known tag in every
    line, or words alone; else it has a sentence a line, as standard input has."""
    if request.pair_column is not None:
        raise UserError(f"pair_column={request.pair_column}: only one column of sentences is read; leave it out")
    options = setup.options
    reading = Reading(
        Wanted(request.column, ("text", "sentence", "words", "tokens")),
        lists=True,
        encoding=options.encoding,
        errors=options.errors,
    )
    for path in chosen(request.names, {*SUFFIXES, *TABLES}, request.note, json=False):
        try:
            columns = path.is_file() and request.documents == "auto" and has_columns(path, setup)
        except UserError as error:
            yield Input(str(path), Unreadable(error.args[0].removeprefix(f"{path}: ")))
            continue
        if columns:
            yield from sentences(path, options)
            continue
        for where, raw in texts(replace(request, names=["-" if path == STDIN else str(path)]), reading):
            yield Input(where, raw.split() if isinstance(raw, str) else raw)


def has_columns(path: Path, setup: ProblemSetup) -> bool:
    """Whether a file is one of columns. Raises UserError for what is no text."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return False
    lines = [line for line in spans.read(path, setup.options).split("\n") if line.strip()]
    lines = [line for line in lines if not line.startswith((COMMENT, DOCUMENT))]
    if suffix in COLUMN_FILES or not lines:
        return True
    rows = [cells_of(line, "\t" in lines[0]) for line in lines]
    tag = -1 if setup.options.tag_column == "last" else setup.options.tag_column
    if {len(cells) for cells in rows} == {1}:
        return True
    same = all(len(cells) == len(rows[0]) > tag for cells in rows)
    return same and all(nfc(cells[tag]) in setup.classes or MARKED.fullmatch(cells[tag]) for cells in rows[1:] or rows)


def sentences(path: Path, options: Any) -> Iterator[Input]:
    """The words of a column file, as training reads it; where that cannot be, as it has no tags or a line is wrong, word by word:
    its column is then that of training."""
    text = spans.read(path, options)
    try:
        for sentence in column_files.sentences(path, text, options, Counter()):
            yield Input(f"{path}:{sentence.lines[0]}", sentence.words)
        return
    except UserError:
        lines = text.split("\n")
    head = next((line for line in lines if line.strip() and not line.startswith((COMMENT, DOCUMENT))), "")
    tabs, width = "\t" in head, len(cells_of(head, "\t" in head))
    words: list[str] = []
    first, fault = 0, ""
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            if words or fault:
                yield Input(f"{path}:{first}", Unreadable(fault) if fault else words)
            words, first, fault = [], 0, ""
            continue
        cells = cells_of(line, tabs)
        if line.startswith(COMMENT) and len(cells) != width:
            continue
        first = first or number
        if len(cells) > options.token_column and cells[options.token_column]:
            words.append(cells[options.token_column])
        else:
            fault = f"line {number}: has no word in column {options.token_column} (downstream.token_column, from 0)"


def unlabelled(raw: list[Any], setup: ProblemSetup) -> Sentences:
    """Of lists of words, or of texts whose words stand between spaces."""
    if strange := [x for x in raw if not isinstance(x, str | list)]:
        raise UserError(f"{str(strange[0])[:60]}: expected a sentence, or a list of its words")
    nowhere = Path()
    part = [Sentence(nowhere, [], x.split() if isinstance(x, str) else x, []) for x in raw]
    bio, processor = is_bio(setup), setup.processor
    return split_of(part, setup.classes, bio, processor.tokenizer, processor.length)[0]


def is_bio(setup: ProblemSetup) -> bool:
    """Whether the tags mark where names begin: their classes are O, and B and I of each kind."""
    if setup.options.scheme != "auto":
        return setup.options.scheme == "bio"
    kinds = {name[1:] for name in setup.classes if name != "O"}
    return setup.classes == ["O", *(f"{place}{kind}" for kind in sorted(kinds) for place in "BI")]
