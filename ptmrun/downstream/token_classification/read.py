"""Column files (CoNLL) -> sentences with their tags."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import torch

from ptmrun.data.text import spans
from ptmrun.downstream.token_classification.columns import SUFFIXES, Sentence, sentences, summary
from ptmrun.downstream.token_classification.schemes import (
    as_bio,
    checked,
    kind_of,
    refuse_unknown,
    respelled,
    scheme,
    tags_of,
)
from ptmrun.downstream.token_classification.split import Sentences
from ptmrun.errors import UserError, printable


def read_splits(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, Sentences], list[str], str]:
    """(splits, tags, fingerprint) of the column files below downstream.root. Raises UserError for files that cannot be used."""
    digest = hashlib.sha256(f"{options.token_column} {options.tag_column} {options.scheme} {options.repair}".encode())
    read: dict[str, list[Sentence]] = {}
    left_out = Counter[str]()
    for name, paths in spans.files(options.root, SUFFIXES).items():
        read[name] = []
        for path in paths:
            text = spans.read(path, options)
            digest.update(f"{name} {len(text)}\n{text}".encode())
            read[name] += sentences(path, text, options, left_out)
    notes += summary(left_out)
    read = respelled(read, options.scheme, notes)
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
    present = tags_of(read["train"])
    if len(present) < 2:
        raise UserError(f"{read['train'][0].path}: every word has the tag {printable(*present)}; expected at least two tags")
    kinds = f"{len(classes) // 2} kind{'s' * (len(classes) > 3)} of names in BIO tags: F1 is that of whole names"
    notes.append(kinds if bio else f"{len(classes)} tags: F1 is that of words")
    splits = {}
    counted = "they count as O" if bio else "their tags count as wrong"
    for name, part in read.items():
        split, removed = split_of(part, classes, bio, tokenizer, length)
        splits[name], words = split, sum(map(len, split.words))
        if cut := sum(int((places < 0).sum()) for places in split.places) - removed:
            notes.append(f"{name}: {cut:,} of {words:,} words are not seen (model.length={length}): {counted}")
        if removed:
            notes.append(f"{name}: {removed:,} of {words:,} words have no token, as the tokenizer leaves them out: {counted}")
    return splits, classes, digest.hexdigest()


def split_of(part: list[Sentence], classes: list[str], bio: bool, tokenizer: Any, length: int) -> tuple[Sentences, int]:
    """Sentences as token numbers, their words' first sub-words found by the characters that tokens stand for; and how many words
    have none, whatever the length."""
    number = {tag: i for i, tag in enumerate(classes)}
    texts = [" ".join(s.words) for s in part]
    frames, places, removed = [], [], 0
    for s, encoding in zip(part, spans.encoded(tokenizer, texts), strict=True):
        frame = spans.framed(tokenizer, encoding.ids, None, length)
        starts = np.cumsum([0, *(len(word) + 1 for word in s.words[:-1])])
        written = np.nonzero(encoding.spans[:, 1] > encoding.spans[:, 0])[0]
        owners, firsts = np.unique(np.searchsorted(starts, encoding.spans[written, 0], side="right") - 1, return_index=True)
        own = np.full(len(s.words), -1)
        removed += len(s.words) - len(owners)
        own[owners] = frame.places[written[firsts]]
        frames.append(frame)
        places.append(own)
    split = Sentences(
        [f.ids for f in frames],
        [f.types for f in frames],
        texts,
        tokenizer.vocabulary.pad,
        torch.arange(len(texts)),
        None,
        names=[f"{s.path}:{s.lines[0]}" for s in part if s.lines] or None,
        words=[s.words for s in part],
        tags=[np.array([number[tag] for tag in s.tags]) for s in part],
        places=places,
        classes=classes,
        bio=bio,
    )
    return split, removed
