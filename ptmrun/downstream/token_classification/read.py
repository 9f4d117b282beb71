"""Column files (CoNLL) -> sentences with their tags."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ptmrun.data.sources.folders import nfc
from ptmrun.data.text import spans
from ptmrun.downstream.token_classification.split import Sentences
from ptmrun.errors import UserError, printable

SUFFIXES = (".conll", ".txt", ".tsv", ".bio")
BIO = re.compile(r"O|B|I|[BI]-.+")
BIOES = re.compile(r"O|[BIESLU]-.+")
AS_BIO = {"S": "B", "U": "B", "E": "I", "L": "I"}
DOCUMENT = "-DOCSTART-"
LISTED = 10  # in a message


class Sentence(NamedTuple):
    path: Path
    lines: list[int]  # number of each word's line, from 1
    words: list[str]
    tags: list[str]


def read_splits(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, Sentences], list[str], str]:
    """(splits, tags, fingerprint) of the column files below downstream.root. Raises UserError for files that cannot be used."""
    digest = hashlib.sha256(f"{options.token_column} {options.tag_column} {options.scheme} {options.repair}".encode())
    read: dict[str, list[Sentence]] = {}
    for name, paths in spans.files(options.root, SUFFIXES).items():
        read[name] = []
        for path in paths:
            text = spans.read(path, options)
            digest.update(f"{name} {len(text)}\n{text}".encode())
            read[name] += sentences(path, text, options)
    bio = scheme(read["train"], options.scheme)
    if bio:
        read = {name: as_bio(part) for name, part in read.items()}
    known = {kind_of(tag) if bio else tag for s in read["train"] for tag in s.tags}
    for name in read:
        refuse_unknown(read[name], known, bio)
    if bio:
        broken = 0
        for name, part in read.items():
            read[name], more = checked(part, options.repair)
            broken += more
        if broken:
            notes.append(f"{broken:,} tags I-... that go on with nothing were made B-... (downstream.repair)")
    classes = sorted(known)
    if bio:
        classes = ["O", *(f"{place}{kind}" for kind in sorted(known - {"O"}) for place in "BI")]
    present = {tag for s in read["train"] for tag in s.tags}
    if len(present) < 2:
        raise UserError(f"{read['train'][0].path}: every word has the tag {printable(*present)}; expected at least two tags")
    kinds = f"{len(classes) // 2} kind{'s' * (len(classes) > 3)} of names in BIO tags: F1 is that of whole names"
    notes.append(kinds if bio else f"{len(classes)} tags: F1 is that of words")
    splits = {name: split_of(part, classes, bio, tokenizer, length) for name, part in read.items()}
    for name, split in splits.items():
        cut = sum(int((places < 0).sum()) for places in split.places)
        if cut:
            words = sum(map(len, split.words))
            notes.append(
                f"{name}: {cut:,} of {words:,} words are not seen (model.length={length}): "
                f"{'they count as O' if bio else 'their tags count as wrong'}"
            )
    return splits, classes, digest.hexdigest()


def sentences(path: Path, text: str, options: Any) -> list[Sentence]:
    """The sentences of a file: columns between tabs where its first word has any, else between spaces and tabs (a space that
    does not break belongs to its word); empty lines end sentences. Not read are document marks, and lines that begin with # where
    they have not the columns of a word."""
    lines = text.split("\n")
    first = next((line for line in lines if line.strip() and not line.startswith(("#", DOCUMENT))), "")

    def cells_of(line: str) -> list[str]:
        if "\t" in first:
            return [cell.strip(" ") for cell in line.split("\t")]
        return [cell for cell in re.split("[ \t]", line) if cell]

    width, token = len(cells_of(first)), options.token_column
    tag = width - 1 if options.tag_column == "last" else options.tag_column
    sentences, place = [Sentence(path, [], [], [])], 0
    for place, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            if sentences[-1].words:
                sentences.append(Sentence(path, [], [], []))
            continue
        cells = cells_of(line)
        if line.startswith("#") and len(cells) != width:
            continue
        if max(token, tag) >= width or token == tag:
            raise UserError(
                f"{path}:{place}: {width} columns; expected a word in column {token} (downstream.token_column, from 0) and a tag "
                f"in column {'1 or later' if options.tag_column == 'last' else tag} (downstream.tag_column)"
            )
        if len(cells) != width or not cells[token] or not cells[tag]:
            lacking = f"{len(cells)} columns" if len(cells) != width else "an empty column"
            raise UserError(f"{path}:{place}: {lacking}; expected a word and its tag in {width} columns, as in the first line")
        sentences[-1].lines.append(place)
        sentences[-1].words.append(cells[token])
        sentences[-1].tags.append(nfc(cells[tag]))
    sentences = [s for s in sentences if s.words]
    if not sentences:
        raise UserError(f"{path}: holds no sentences; expected a word and its tag a line, and empty lines between sentences")
    return sentences


def where(part: list[Sentence]) -> Iterable[tuple[str, str]]:
    """(tag, file and line) of every word."""
    return ((tag, f"{s.path}:{line}") for s in part for tag, line in zip(s.tags, s.lines, strict=True))


def scheme(train: list[Sentence], wanted: str) -> bool:
    """Whether tags are BIO (or BIOES, BILOU), which mark where names begin, or plain. Raises UserError for a mixture."""
    tags = {tag for s in train for tag in s.tags}
    marked = any(tag == "B" or re.match("[BI]-.", tag) for tag in tags)
    if wanted == "plain" or (wanted == "auto" and not marked):
        return False
    if all(map(BIO.fullmatch, tags)) or all(map(BIOES.fullmatch, tags)):
        return True
    if wanted == "auto" and "O" not in tags:
        return False
    tag, place = next((tag, place) for tag, place in where(train) if not BIO.fullmatch(tag))
    raise UserError(
        f"{place}: the tag {printable(tag)} among BIO tags; expected O, B-kind or I-kind; for plain tags: downstream.scheme=plain"
    )


def kind_of(tag: str) -> str:
    """What stands after the B or I of a BIO tag, with the hyphen; O."""
    return tag if tag == "O" else tag[1:]


def as_bio(part: list[Sentence]) -> list[Sentence]:
    """BIOES and BILOU tags as BIO."""

    def changed(tag: str) -> str:
        return AS_BIO[tag[0]] + tag[1:] if tag[0] in AS_BIO and BIOES.fullmatch(tag) else tag

    return [s._replace(tags=list(map(changed, s.tags))) for s in part]


def refuse_unknown(part: list[Sentence], known: set[str], bio: bool) -> None:
    """Raises UserError for tags that are not known (of BIO tags, for kinds)."""
    there = {tag for s in part for tag in s.tags}
    lacking = {tag for tag in there if (kind_of(tag) if bio else tag) not in known or (bio and not BIO.fullmatch(tag))}
    if lacking:
        first = {tag: place for tag, place in reversed(list(where(part))) if tag in lacking}
        listed = ", ".join(f"{printable(tag)} ({first[tag]})" for tag in sorted(lacking)[:LISTED])
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        raise UserError(
            f"downstream.root: the training files lack the tags {listed}{more}; rename them or remove their sentences"
        )


def checked(part: list[Sentence], repair: bool) -> tuple[list[Sentence], int]:
    """BIO tags whose names begin with B; how many were made to. Raises UserError for one that does not, unless `repair`."""
    sentences, broken = [], 0
    for s in part:
        tags, before = [], "O"
        for tag, line in zip(s.tags, s.lines, strict=True):
            if tag[0] == "I" and (before == "O" or kind_of(before) != kind_of(tag)):
                begins = f"B{kind_of(tag)}"
                if not repair:
                    raise UserError(
                        f"{s.path}:{line}: {printable(tag)} goes on with no {printable(begins)}; mend it, or set "
                        f"downstream.repair=true to make it {printable(begins)}"
                    )
                tag, broken = begins, broken + 1
            tags.append(tag)
            before = tag
        sentences.append(s._replace(tags=tags))
    return sentences, broken


def split_of(part: list[Sentence], classes: list[str], bio: bool, tokenizer: Any, length: int) -> Sentences:
    """Sentences as token numbers, their words' first sub-words found by the characters that tokens stand for."""
    number = {tag: i for i, tag in enumerate(classes)}
    texts = [" ".join(s.words) for s in part]
    frames, places = [], []
    for s, encoding in zip(part, spans.encoded(tokenizer, texts), strict=True):
        frame = spans.framed(tokenizer, encoding.ids, None, length)
        starts = np.cumsum([0, *(len(word) + 1 for word in s.words[:-1])])
        written = np.nonzero(encoding.spans[:, 1] > encoding.spans[:, 0])[0]
        owners, firsts = np.unique(np.searchsorted(starts, encoding.spans[written, 0], side="right") - 1, return_index=True)
        own = np.full(len(s.words), -1)
        own[owners] = frame.places[written[firsts]]
        frames.append(frame)
        places.append(own)
    return Sentences(
        [f.ids for f in frames],
        [f.types for f in frames],
        texts,
        tokenizer.vocabulary.pad,
        torch.arange(len(texts)),
        None,
        names=[f"{s.path}:{s.lines[0]}" for s in part],
        words=[s.words for s in part],
        tags=[np.array([number[tag] for tag in s.tags]) for s in part],
        places=places,
        classes=classes,
        bio=bio,
    )
