"""Column files -> sentences: a word and its columns a line, and an empty line after each sentence."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ptmrun.data.sources.folders import nfc
from ptmrun.errors import UserError

SUFFIXES = (".conll", ".txt", ".tsv", ".bio", ".iob", ".iob2", ".bmes", ".conllu")
DOCUMENT = "-DOCSTART-"
COMMENT = "#"
MARKED = re.compile(r"[Oo]|[BIESLUMW]([-_:/].+)?|.+[-_:/][BIESLUMW]")  # a tag that marks where names begin
NUMBER = re.compile(r"\d+")  # of a word in CoNLL-U
NO_WORD = re.compile(r"\d+(-|\.)\d+")  # there: words that are written as one, and those that are not written
FORM, UPOS, CONLLU = 1, 3, 10  # there: the columns of words and of parts of speech, and how many there are
HEADER_WORDS = {"word", "words", "token", "tokens", "form", "text"}
HEADER_TAGS = {
    *("tag", "tags", "ner", "ner tag", "ner tags", "pos", "pos tag", "pos tags", "upos", "xpos", "chunk"),
    *("label", "labels", "bio", "iob", "entity", "entities"),
}


class Sentence(NamedTuple):
    path: Path
    lines: list[int]  # number of each word's line, from 1
    words: list[str]
    tags: list[str]


def sentences(path: Path, text: str, options: Any, notes: Counter[str]) -> list[Sentence]:
    """The sentences of a file: columns between tabs where its first word has any, else between spaces and tabs (a space that
    does not break belongs to its word); empty lines end sentences. Not read are document marks; lines that begin with #, where
    they have not the columns of a word or stand before a sentence with no tag of the file's; a header; and what CoNLL-U has
    beside words. Lines that could have been words are counted in `notes`."""
    lines = text.split("\n")
    first = next((line for line in lines if line.strip() and not line.startswith((COMMENT, DOCUMENT))), "")

    tabs = "\t" in first
    width, token, tag = columns(path, cells_of(first, tabs), options, notes)
    rows = [cells_of(line, tabs) for line in lines]
    full = [bool(line.strip()) and len(row) == width for row, line in zip(rows, lines, strict=True)]
    sure = [fits and not line.startswith((COMMENT, DOCUMENT)) for fits, line in zip(full, lines, strict=True)]
    words = [row for place, row in enumerate(rows) if sure[place] or (full[place] and place and sure[place - 1])]
    known = {row[tag] for row in words} if tag < width else set()
    numbered = token > 0 and all(NUMBER.fullmatch(row[0]) or NO_WORD.fullmatch(row[0]) for row in words[1:])
    sentences, begun = [Sentence(path, [], [], [])], False
    for place, (line, cells) in enumerate(zip(lines, rows, strict=True), start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            if sentences[-1].words:
                sentences.append(Sentence(path, [], [], []))
            continue
        if line.startswith(COMMENT) and len(cells) != width:
            continue
        if max(token, tag) >= width or token == tag:
            raise UserError(
                f"{path}:{place}: {width} columns; expected a word in column {token} (downstream.token_column, from 0) and a tag "
                f"in column {'1 or later' if options.tag_column == 'last' else tag} (downstream.tag_column)"
            )
        if len(cells) != width or not cells[token] or not cells[tag]:
            lacking = f"{len(cells)} columns" if len(cells) != width else "an empty column"
            raise UserError(f"{path}:{place}: {lacking}; expected a word and its tag in {width} columns, as in the first line")
        if line.startswith(COMMENT) and not sentences[-1].words and is_comment(cells, cells[tag], known):
            notes["lines that begin with # are read as comments"] += 1
            continue
        if numbered and NO_WORD.fullmatch(cells[0]):
            notes["lines of CoNLL-U that number no word (2-3, 4.1) are left out"] += 1
            continue
        if not begun and is_header(cells[token], cells[tag], [row[tag] for row in words[1:]]):
            notes["header lines are left out"] += 1
            begun = True
            continue
        begun = True
        sentences[-1].lines.append(place)
        sentences[-1].words.append(cells[token])
        sentences[-1].tags.append(nfc(cells[tag]))
    sentences = [s for s in sentences if s.words]
    if not sentences:
        raise UserError(f"{path}: holds no sentences; expected a word and its tag a line, and empty lines between sentences")
    if any(len(s.words) > 1 for s in sentences) and all(s.words == list(map(str, range(1, len(s.words) + 1))) for s in sentences):
        raise UserError(f"{path}: column {token} numbers the words; expected words (downstream.token_column={token + 1}?)")
    return sentences


def cells_of(line: str, tabs: bool) -> list[str]:
    """The columns of a line, between tabs, or between spaces and tabs."""
    return [cell.strip(" ") for cell in line.split("\t")] if tabs else [cell for cell in re.split("[ \t]", line) if cell]


def columns(path: Path, first: list[str], options: Any, notes: Counter[str]) -> tuple[int, int, int]:
    """(how many there are, that of the words, that of the tags), from 0. In CoNLL-U, what is not asked for is as it is there."""
    width, token = len(first), options.token_column
    if path.suffix.lower() == ".conllu" and width == CONLLU and token == 0:
        notes[f"files in CoNLL-U: words are column {FORM}"] += 1
        token = FORM
        if options.tag_column == "last":
            notes[f"files in CoNLL-U: tags are parts of speech, column {UPOS} (downstream.tag_column)"] += 1
            return width, token, UPOS
    return width, token, width - 1 if options.tag_column == "last" else options.tag_column


def is_comment(cells: list[str], tag: str, known: set[str]) -> bool:
    """Whether a line before a sentence, which begins with # and has the columns of a word, is none: not a word # or #word with a
    tag of the file's, or with one that marks names."""
    return cells[0].startswith(f"{COMMENT} ") or not (tag in known or tag == COMMENT or MARKED.fullmatch(tag))


def is_header(word: str, tag: str, others: list[str]) -> bool:
    """Whether the first line names the columns."""
    plain = tag.lower().replace("_", " ").replace("-", " ")
    return word.lower() in HEADER_WORDS and plain in HEADER_TAGS and tag not in others


def summary(notes: Counter[str]) -> list[str]:
    return [f"{count:,} {what}" for what, count in notes.items()]
