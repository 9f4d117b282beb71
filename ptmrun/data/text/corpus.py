"""Texts -> token numbers: once, into memory-mapped files; and the blocks and pairs of sentences that models pretrain on."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.batch import Tokens
from ptmrun.data.sources import TextPart
from ptmrun.data.text.sentences import CUT, pieces
from ptmrun.data.text.tokenizer import Tokenizer, room, shares
from ptmrun.errors import UserError
from ptmrun.storage.files import cache_folder, new_entry

STEP = 2.0**-24  # between float32 random numbers
VERSION = 1  # of what stands in the files
BATCH = 2**22  # characters that are tokenised at a time


@dataclass(frozen=True)
class Corpus:
    """Documents as token numbers without special tokens. `spans` says which part of the files belongs to it, in order.

    Sentence s has the tokens starts[s] ... starts[s + 1]; document d of the whole has the sentences documents[d] ...
    documents[d + 1]. A document without tokens has no sentence.
    """

    tokenizer: Tokenizer
    ids: np.ndarray  # [tokens] uint16 or int32, memory-mapped
    starts: np.ndarray  # [sentences + 1] int64
    sizes: np.ndarray  # [sentences] int64, bytes in UTF-8, with what stands between them
    documents: np.ndarray  # [documents + 1] int64
    spans: np.ndarray  # [N, 2] int64: first sentence, and the one after the last, of each document

    def __len__(self) -> int:
        """Documents."""
        return len(self.spans)

    @property
    def places(self) -> np.ndarray:
        """First token, and the one after the last, of each document: [N, 2]."""
        return self.starts[self.spans]

    @property
    def tokens(self) -> int:
        """Tokens of text, without marks between documents."""
        places = self.places
        return int((places[:, 1] - places[:, 0]).sum())

    @property
    def bytes(self) -> int:
        """Of the text, in UTF-8: bits per byte = nats per token * tokens predicted / (ln 2 * bytes)."""
        sums = np.concatenate([[0], np.cumsum(self.sizes)])
        return int((sums[self.spans[:, 1]] - sums[self.spans[:, 0]]).sum())

    def document(self, index: int) -> np.ndarray:
        """Token numbers of a document, [n]."""
        first, last = self.places[index]
        return self.ids[first:last]

    def subset(self, indices: Tensor) -> "Corpus":
        """Some of the documents, in this order."""
        return replace(self, spans=self.spans[indices.numpy()])

    def blocks(self, length: int, framed: bool = True, apart: bool = False) -> "Blocks":
        return Blocks(self, length, framed, apart)

    def sentence_pairs(self, length: int) -> "Pairs":
        return Pairs(self, length)


def hold_out(corpus: Corpus, fraction: float, seed: int, purpose: str) -> tuple[Corpus, Corpus]:
    """(the rest, the held-out share): a seeded share of the documents, of four or more at least two, so that on both sides a
    sentence can be followed by one of another document; of a single document, its last sentences."""
    if len(corpus) > 1:
        held = torch.zeros(len(corpus), dtype=torch.bool)
        count = min(max(2 if len(corpus) > 3 else 1, round(fraction * len(corpus))), len(corpus) - 1)
        held[rng.permutation(seed, f"split/{purpose}", len(corpus))[:count]] = True
        return corpus.subset(torch.nonzero(~held)[:, 0]), corpus.subset(torch.nonzero(held)[:, 0])
    [(first, last)] = corpus.spans.tolist()
    if last - first < 2:
        raise UserError(
            "dataset.documents: the only document has one sentence, so none can be held out; "
            "expected more text, or documents=lines where each line is a text of its own"
        )
    goal = corpus.starts[last] - fraction * (corpus.starts[last] - corpus.starts[first])
    cut = int(np.clip(np.searchsorted(corpus.starts, goal), first + 1, last - 1))
    return replace(corpus, spans=np.array([[first, cut]])), replace(corpus, spans=np.array([[cut, last]]))


class Blocks:
    """Full blocks of a corpus: documents one after the other, each followed by the vocabulary's `end` as mark.

    Attention crosses documents unless they are `apart`: then no token sees another document. No padding: where the last block is
    not full it goes on at the beginning of the corpus.
    With `framed`, each block has the special tokens of a single text around it; else it is text and marks alone.
    """

    def __init__(self, corpus: Corpus, length: int, framed: bool, apart: bool):
        self.corpus, self.length, self.apart = corpus, length, apart
        self.template = corpus.tokenizer.single if framed else None
        self.room = room(self.template, length) if self.template else length
        places = corpus.places[corpus.places[:, 0] < corpus.places[:, 1]]
        self.first = places[:, 0]
        self.lengths = places[:, 1] - places[:, 0] + 1  # in the stream, marks included
        self.ends = np.cumsum(self.lengths)
        if not len(places):
            raise UserError("dataset: the texts have no tokens that can be packed into blocks")
        self.total = int(self.ends[-1])
        self.count = -(-self.total // self.room)

    def __len__(self) -> int:
        return self.count

    def stream(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens at these places of the stream, of any shape, int64; and which of them are marks, bool."""
        document = np.searchsorted(self.ends, positions, side="right")
        left = self.ends[document] - positions  # tokens to the end of the document, with the mark: 1 is the mark
        lengths = self.lengths[document]
        inside = np.minimum(lengths - left, lengths - 2)
        ids = self.corpus.ids[self.first[document] + inside].astype(np.int64)
        ids[left == 1] = self.corpus.tokenizer.vocabulary.end
        return ids, left == 1

    def batch(self, indices: Tensor) -> Tokens:
        """[B, length] of these blocks."""
        positions = (indices.numpy()[:, None] * self.room + np.arange(self.room)) % self.total
        text, marks = map(torch.from_numpy, self.stream(positions))
        parts, kinds = [text], torch.zeros(self.room, dtype=torch.int64)
        if self.template:
            whole = [(text if isinstance(t, str) else torch.full((len(text), 1), t), k) for t, k in self.template.parts]
            parts = [part for part, _ in whole]
            kinds = torch.cat([torch.full((part.shape[1],), k) for part, k in whole])
        ids = torch.cat(parts, dim=1)
        documents = None
        if self.apart:  # special tokens around them are of the first and of the last one
            before = next(i for i, part in enumerate(parts) if part is text)
            documents = F.pad(marks[:, :-1].cumsum(1), (1, 0))
            documents = torch.cat([documents[:, :1]] * before + [documents] + [documents[:, -1:]] * (len(parts) - before - 1), 1)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool), kinds.expand_as(ids).contiguous(), documents)


class Pairs:
    """Pairs of texts for next-sentence prediction (Devlin et al., 2019): half of the second ones follow the first in their
    document, the others are from another document."""

    draws = 6  # uniform random numbers a pair

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length = corpus, length
        self.template = corpus.tokenizer.pair
        self.room = room(self.template, length)
        spans = corpus.spans[corpus.spans[:, 0] < corpus.spans[:, 1]]
        if len(spans) < 2:
            raise UserError(
                f"dataset.documents: sentences from another document are needed, and there is {len(spans)} document to train on "
                "or held out; expected at least four: several files, or documents=blank_lines"
            )
        counts = spans[:, 1] - spans[:, 0] - 1  # second texts begin at any sentence but the first of a document
        self.sentence = ragged(spans[:, 0] + 1, counts)  # where a second text can begin
        self.last = np.repeat(spans[:, 1], counts)
        self.own = np.stack([np.repeat(np.cumsum(counts) - counts, counts), np.repeat(counts, counts)], axis=1)
        if not len(self.sentence):
            raise UserError(
                "dataset.documents: each document has one sentence, so none follows another; expected documents of several "
                "sentences, one a line or with . ! ? at their ends"
            )
        self.alone = (counts > 0).sum() < 2  # then others are from the documents of one sentence
        self.others = spans[counts == 0]

    def batch(self, draws: Tensor) -> tuple[Tokens, Tensor]:
        """Uniform numbers in [0, 1), [B, 6] -> pairs [B, T <= length], padded to the longest, and whether the second text
        really follows, [B] bool."""
        where, more, follows, other, *finer = draws.double().numpy().T
        where, other = where + finer[0] * STEP, other + finer[1] * STEP  # any of more than 16 million sentences
        starts, n = self.corpus.starts, len(self.sentence)
        follows = follows < 0.5
        at = (where * n).astype(np.int64)
        first, last = self.sentence[at] - 1, self.last[at]
        fit = np.searchsorted(starts, starts[first] + self.room // 2, side="right") - 1  # whole sentences in half the room
        fit = np.clip(fit, first + 1, last - 1)
        cut = first + 1 + (more * (fit - first)).astype(np.int64)
        if self.alone:
            pick = (other * len(self.others)).astype(np.int64)
            begin, end = self.others[pick, 0], self.others[pick, 1]
        else:
            before, count = self.own[at].T
            pick = (other * (n - count)).astype(np.int64)
            pick += np.where(pick >= before, count, 0)  # those of the own document are passed over
            begin, end = self.sentence[pick], self.last[pick]
        begin, end = np.where(follows, cut, begin), np.where(follows, last, end)
        a, b = starts[cut] - starts[first], starts[end] - starts[begin]
        kept_b, kept_a = shares(b, a, self.room)  # of the first text the end is kept, which the second one follows
        return self.framed(starts[cut] - kept_a, kept_a, starts[begin], kept_b), torch.from_numpy(follows)

    def framed(self, a: np.ndarray, n_a: np.ndarray, b: np.ndarray, n_b: np.ndarray) -> Tokens:
        """Pairs of runs of tokens, given where they begin and how long they are, each [B]."""
        vocabulary, longest = self.corpus.tokenizer.vocabulary, int((n_a + n_b).max()) + self.template.extra
        column, place = np.arange(longest)[None], np.zeros((len(a), 1), dtype=np.int64)
        ids, types = np.full((len(a), longest), vocabulary.pad, dtype=np.int64), np.zeros((len(a), longest), dtype=np.int64)
        for token, kind in self.template.parts:
            begin, count = {"A": (a, n_a), "B": (b, n_b)}.get(str(token), (a, np.ones_like(a)))
            here = (column >= place) & (column < place + count[:, None])
            if isinstance(token, str):
                ids[here] = self.corpus.ids[(begin[:, None] + column - place)[here]]
            else:
                ids[here] = token
            types[here] = kind
            place = place + count[:, None]
        return Tokens(torch.from_numpy(ids), torch.from_numpy(column < place), torch.from_numpy(types))


def ragged(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1 ... (counts[0] of them), first[1] ..."""
    return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


FILES = {"ids": None, "starts": np.int64, "sizes": np.int64, "documents": np.int64}


def tokenised(part: TextPart, tokenizer: Tokenizer, progress: Callable[[str, int, int], None] = lambda *_: None) -> Corpus:
    """All documents as token numbers, in files in the cache folder: made once for each text and tokenizer."""
    key = hashlib.sha256(f"{VERSION}/{CUT}/{part.fingerprint}/{tokenizer.fingerprint}".encode()).hexdigest()[:32]
    folder = cache_folder() / f"{key}.corpus"
    if corpus := opened(folder, tokenizer):
        return corpus
    new: Path | None = None
    try:
        new = new_entry(folder)
        new.mkdir()
        write(new, part, tokenizer, progress)
        if folder.exists() and not opened(folder, tokenizer):
            shutil.rmtree(folder)  # what a full disk or a kill has left
        try:
            os.replace(new, folder)
        except OSError:
            if not opened(folder, tokenizer):  # else another process was faster
                raise
    except OSError as error:
        raise UserError(
            f"{cache_folder()}: token numbers of {part.size / 1e6:.0f} MB of text cannot be kept there: {error.strerror}; "
            "point PTMRUN_CACHE at a folder with room"
        ) from None
    finally:
        if new:
            shutil.rmtree(new, ignore_errors=True)
    made = opened(folder, tokenizer)
    assert made
    return made


def opened(folder: Path, tokenizer: Tokenizer) -> Corpus | None:
    """The corpus of a folder; none where a file is missing or has not its full length."""

    def mapped(name: str, kind: Any) -> np.ndarray:
        file = folder / name
        return np.memmap(file, kind, mode="r") if file.stat().st_size else np.zeros(0, kind)

    try:
        ids, starts, sizes, documents = (mapped(name, kind or number_type(tokenizer)) for name, kind in FILES.items())
        if not (starts[-1] == len(ids) and len(starts) == len(sizes) + 1 and documents[-1] == len(sizes)):
            return None
    except (OSError, ValueError, IndexError):
        return None
    return Corpus(tokenizer, ids, starts, sizes, documents, np.stack([documents[:-1], documents[1:]], axis=1))


def number_type(tokenizer: Tokenizer) -> Any:
    return np.uint16 if tokenizer.vocabulary.size <= 2**16 else np.int32


def write(folder: Path, part: TextPart, tokenizer: Tokenizer, progress: Callable[[str, int, int], None]) -> None:
    """The files of a corpus, a batch of documents in memory at a time."""
    with (
        open(folder / "ids", "wb") as ids,
        open(folder / "starts", "wb") as starts,
        open(folder / "sizes", "wb") as sizes,
        open(folder / "documents", "wb") as documents,
    ):
        put(starts, np.zeros(1, np.int64))
        put(documents, np.zeros(1, np.int64))
        tokens = sentences = done = 0
        for batch in batches(part.documents()):
            numbers, lengths = tokenizer.flat([p if tokenizer.kind == "bpe" else p.strip() for p in chain(*batch)])
            owner = np.repeat(np.arange(len(batch)), [len(document) for document in batch])
            size = np.array([len(p.encode()) for p in chain(*batch)], dtype=np.int64)
            there = lengths > 0  # what stands for no token, such as white space, belongs to the sentence before it
            before = np.cumsum(there) - 1
            spare = ~there & (before >= 0)
            spare[spare] = owner[there][before[spare]] == owner[spare]
            kept = size[there]
            np.add.at(kept, before[spare], size[spare])
            put(ids, numbers.astype(number_type(tokenizer)))
            put(starts, tokens + np.cumsum(lengths[there]))
            put(sizes, kept)
            put(documents, sentences + np.cumsum(np.bincount(owner[there], minlength=len(batch))))
            tokens, sentences, done = tokens + len(numbers), sentences + len(kept), done + len(batch)
            progress("tokenising", done, part.count)


def put(file: BinaryIO, values: np.ndarray) -> None:
    file.write(np.ascontiguousarray(values).data)


def batches(documents: Iterator[str]) -> Iterator[list[list[str]]]:
    """The pieces of documents, as many documents at a time as make up BATCH characters."""
    batch, size = [], 0
    for document in documents:
        batch.append(pieces(document))
        size += len(document)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
