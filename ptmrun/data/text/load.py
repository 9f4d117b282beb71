"""Texts as the data of a run: a tokenized corpus to pretrain on, and labelled texts, from raw files. Splits never depend on the
run's seed."""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.batch import Tokens, Vocabulary
from ptmrun.config.schema import Config, spec
from ptmrun.data.epochs import Epochs
from ptmrun.data.sources import text
from ptmrun.data.splits import divide
from ptmrun.data.text import corpus, tokenizer
from ptmrun.errors import UserError

LENGTH = 128  # tokens of a sequence, for model.length=auto


BUCKET = 32  # batches whose samples are sorted by length together, so that little is padded


C = 10.0  # of logistic regression on TF-IDF


@dataclass
class TextSplit:
    """Texts of one split, tokenized and framed with special tokens.

    ids, types: of every text of the source, int arrays [T]; texts: as they were read; seconds: of pairs, the second ones, else
    none; rows [N]: which of them this split has. labels: classes [N], or 0 and 1 [N, classes] where a text may have several, or
    none; groups [N] or none.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    texts: list[str]
    pad: int
    rows: Tensor
    labels: Tensor | None
    groups: np.ndarray | None = None
    seconds: list[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, [N]."""
        return torch.tensor([len(self.ids[r]) for r in self.rows.tolist()])

    def read(self) -> list[str]:
        """The texts themselves, of pairs one after the other."""
        seconds = self.seconds
        return [self.texts[r] if seconds is None else f"{self.texts[r]}\n{seconds[r]}" for r in self.rows.tolist()]

    def documents(self) -> list[str]:
        """All that its samples are made of, text by text."""
        return [source[r] for source in (self.texts, self.seconds) if source for r in self.rows.tolist()]

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tokens]:
        """The texts of each list of this split's indices, padded to the longest."""
        for indices in index_lists:
            rows = self.rows[indices].tolist()
            yield padded([self.ids[r] for r in rows], [self.types[r] for r in rows], self.pad)

    def subset(self, indices: Tensor) -> Self:
        labels = None if self.labels is None else self.labels[indices]
        groups = None if self.groups is None else self.groups[indices.numpy()]
        return replace(self, rows=self.rows[indices], labels=labels, groups=groups)

    def answers(self, indices: Tensor) -> Any:
        """What a model is to say of these samples: their labels, or what a subclass has instead of them; with `to(device)`."""
        return None if self.labels is None else self.labels[indices]

    def spaced(self, count: int) -> Self:
        """At most `count` of the texts, evenly spaced."""
        return self.subset(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def by_length(self) -> tuple[Self, Tensor | slice]:
        """The same texts, the shortest first, so that little is padded; and the place of each in that order, [N], by which rows
        that were made of them are put back."""
        order = self.lengths.argsort(stable=True)
        return self.subset(order), order.argsort()

    def all(self, size: int = 64) -> Iterator[Tokens]:
        """The whole split in order, in batches."""
        return self.batches(torch.arange(len(self)).split(size))


def padded(ids: list[np.ndarray], types: list[np.ndarray], pad: int) -> Tokens:
    """Sequences of different lengths as one batch."""
    lengths = torch.tensor([len(x) for x in ids])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    filled, kinds = torch.full(mask.shape, pad), torch.zeros(mask.shape, dtype=torch.int64)
    filled[mask] = torch.from_numpy(np.concatenate(ids)).long()
    kinds[mask] = torch.from_numpy(np.concatenate(types)).long()
    return Tokens(filled, mask, kinds)


@dataclass
class Sequences:
    """Full-length sequences of a tokenized corpus, documents packed one after the other; rows [N]: which of them these are."""

    blocks: Any  # corpus.Blocks
    rows: Tensor
    labels = None
    groups = None

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def pairs(self) -> Any:
        """Pairs of texts from the same corpus."""
        return self.blocks.corpus.sentence_pairs(self.blocks.length)

    @property
    def bytes_per_token(self) -> float:
        return self.blocks.corpus.bytes / self.blocks.total

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tokens]:
        for indices in index_lists:
            yield self.blocks.batch(self.rows[indices])

    def subset(self, indices: Tensor) -> "Sequences":
        return Sequences(self.blocks, self.rows[indices])

    def spaced(self, count: int) -> "Sequences":
        return self.subset(torch.linspace(0, len(self) - 1, min(count, len(self))).long())

    def by_length(self) -> tuple["Sequences", slice]:
        """They are of one length: they stay in order."""
        return self, slice(None)

    def all(self, size: int = 64) -> Iterator[Tokens]:
        return self.batches(torch.arange(len(self)).split(size))


class TextBatches(Epochs):
    """Of token sequences. Texts of different lengths stand beside others of about their length; with `pairs` the batches are not
    of the split's own sequences but of two pieces of its corpus and, as `next` [b], whether the second one followed the first."""

    def __init__(self, split: Any, inputs: Any, batch_size: int, accumulate: int, seed: int, purpose: str, pairs: bool):
        super().__init__(split, inputs, batch_size, accumulate, seed, purpose)
        self.pairs = pairs

    def order(self, epoch: int) -> Tensor:
        known = epoch in self.orders
        drawn = super().order(epoch)
        if known or not isinstance(self.split, TextSplit):
            return drawn
        lengths, parts = self.split.lengths, []
        for chunk in drawn.split(BUCKET * self.batch_size):
            batches = chunk[lengths[chunk].argsort(stable=True)].split(self.batch_size)
            full = [b for b in batches if len(b) == self.batch_size]
            mixed = rng.permutation(self.seed, f"{self.purpose}/buckets", len(full), epoch).tolist()
            parts += [*(full[i] for i in mixed), *batches[len(full) :]]
        self.orders[epoch] = torch.cat(parts)
        return self.orders[epoch]

    def micro(self, samples: Tokens, ids: Tensor, rows: rng.Rows) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        batch: dict[str, Any] = {"ids": ids[place], "rows": rows}
        if self.pairs:
            tokens, follows = self.split.pairs.batch(rows.uniform("pairs", self.split.pairs.draws))
            tokens = self.inputs(tokens)
            return {"inputs": tokens, "next": follows.to(tokens.ids.device), **batch}
        tokens = self.inputs(samples.map(lambda x: x[place]))
        if isinstance(self.split, TextSplit) and (answers := self.split.answers(ids[place])) is not None:
            batch["labels"] = answers.to(tokens.ids.device)
        return {"inputs": tokens, **batch}


@dataclass
class Texts:
    """The data of a run (see data/__init__.py). Without labels its splits are the corpus's own."""

    noun = "texts"

    train: Any
    val: Any
    test: Any
    corpus: Sequences
    held: Sequences
    unseen: Sequences | None  # the corpus's test split, where it came with one
    classes: list[str]
    tokenizer: Any  # tokenizer.Tokenizer
    length: int
    fingerprint: str
    corpus_fingerprint: str  # of what is pretrained on, whatever is labelled
    notes: list[str] = field(default_factory=list)
    made: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[Vocabulary, int]:
        return self.tokenizer.vocabulary, self.length

    @property
    def preprocessing(self) -> tuple[Any]:
        return (self.tokenizer,)

    @property
    def settled(self) -> dict[str, Any]:
        return {"model__length": self.length, "model__vocabulary": self.tokenizer.vocabulary.size}

    @property
    def facts(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint, "tokens": self.corpus.blocks.corpus.tokens}

    def __str__(self) -> str:
        vocabulary = f"a vocabulary of {self.tokenizer.vocabulary.size:,}"
        corpus = f"{self.corpus.blocks.corpus.tokens:,} tokens, {vocabulary}, {len(self.corpus):,} sequences of {self.length}"
        return f"{corpus}, {len(self.classes)} classes" if self.classes else corpus

    def encoded(self, texts: list[str]) -> Tokens:
        """Other texts as the model reads them."""
        pairs = [self.tokenizer.frame(ids, None, self.length) for ids in self.tokenizer.encode(texts)]
        return padded([ids for ids, _ in pairs], [types for _, types in pairs], self.tokenizer.vocabulary.pad)

    def inputs(self, device: torch.device) -> Callable[[Tokens], Tokens]:
        return lambda tokens: tokens.to(device)

    def batches(
        self, model: Any, split: Any, cfg: Config, loop: Any, size: int, seed: int, purpose: str, inputs: Any
    ) -> TextBatches:
        return TextBatches(split, inputs, size, min(loop.accumulate, size), seed, purpose, getattr(model, "pairs", False))

    def raw(self, train: TextSplit) -> tuple[Any, Any, float]:
        """TF-IDF of words and pairs of words, as the training texts have them."""
        texts = train.read()
        vectorizer = tf_idf(texts, sublinear_tf=True, ngram_range=(1, 2))
        return vectorizer.transform(texts), vectorizer.transform(self.test.read()), C


def tf_idf(texts: list[str], **options: Any) -> Any:
    """Scikit-learn's TF-IDF, fitted to these texts: of words of two characters and more, or where there are none, as in texts
    of emoji alone, of what stands between spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = r"(?u)\b\w\w+\b"
    return TfidfVectorizer(token_pattern=words if any(re.search(words, t) for t in texts) else r"\S+", **options).fit(texts)


def load(
    read: Callable[[Any], Any],
    cfg: Config,
    family: Any,
    problem: Any,
    folder: Path | None,
    progress: Callable[[str, int, int], None],
) -> Texts:
    """Reads the corpus, tokenizes it once, and frames the labelled texts, which are the corpus's own or those of downstream.root.

    `family` is the model's module (FRAMING, TOKENIZER), `problem` that of the labelled problem, `folder` where a tokenizer is
    that the run's weights belong to. Raises UserError for data that cannot be used.
    """
    options, source = cfg.dataset, read(cfg.dataset)
    notes = list(source.notes)
    length = LENGTH if cfg.model.length == "auto" else cfg.model.length
    train = source.parts["train"]
    if folder:
        own = tokenizer.of_run(folder, family.FRAMING)
    else:
        own = tokenizer.choose(cfg.model, family.TOKENIZER, family.FRAMING, train, progress)
    alone = [tokenizer.CUT, source.fingerprint, own.fingerprint, length, options.val_fraction, options.split_seed]
    sets, classes, other = labelled(cfg, source, problem, own, length, notes)
    marks, made = [*alone, *other], dict[str, Any]()
    if sets:
        first, val, test, made = divide(sets, options, "texts", notes)
        marks += [fingerprint_of(x.rows.tolist()) for x in (first, val, test)]
    corpora = {name: corpus.tokenised(part, own, progress) for name, part in source.parts.items()}
    pretrains = cfg.stage in ("all", "pretrain")
    if "test" in made or (sets and pretrains):
        tested = set(test.documents())
        again = [i for i, document in enumerate(train.documents()) if document in tested]
        if again and "test" not in made:
            notes.append(f"{len(again):,} texts of the corpus are in the test split too, which came so; they are pretrained on")
        elif len(again) == train.count:
            raise UserError(f"dataset.root={options.root}: all texts are held out to test with; expected others to pretrain on")
        elif again:  # nothing is pretrained on texts that are held out here to test with, wherever they were read
            corpora["train"] = corpora["train"].subset(without(torch.tensor(again), train.count))
            alone.append(fingerprint_of(again))
            notes.append(f"{len(again):,} texts of the corpus are held out to test with: nothing is pretrained on them")
    held = corpora.pop("val", None)
    if held is None:
        whole = corpora["train"]
        corpora["train"], held = corpus.hold_out(whole, options.val_fraction, options.split_seed, "val")
        of = f"{len(held):,} of {len(whole):,} documents" if len(whole) > 1 else "the last sentences of the only document"
        notes.append(f"{of} are held out to judge by")
    apart, pairs = pretrains and cfg.pretrain.document_mask, "sentence_pairs" in spec("task", cfg.task.name).requires
    if pretrains and not pairs and len(corpora["train"]) > 1:
        seen = "do not see one another" if apart else "see one another"
        notes.append(f"documents are packed one after the other, a mark between them, and {seen}")
    block = functools.partial(packed, length=length, family=family, apart=apart)
    sequences, judged = block(corpora["train"]), block(held)
    if options.limit and options.limit < len(sequences):
        order = rng.permutation(options.split_seed, "split/limit", len(sequences))
        sequences = sequences.subset(order[: options.limit].sort().values)
        if pairs:
            notes.append(f"task={cfg.task.name} draws its pairs from the whole corpus, also with dataset.limit={options.limit:,}")
    unseen = block(corpora["test"]) if "test" in corpora else None
    marks.append(len(sequences))
    if not sets:
        first, val, test = sequences, judged, unseen or judged
    listed = {name: [f"row {r}" for r in split.rows.tolist()] for name, split in made.items()}
    prints = fingerprint_of(marks), fingerprint_of([*alone, len(sequences)])
    return Texts(first, val, test, sequences, judged, unseen, classes, own, length, *prints, notes, listed)


def labelled(
    cfg: Config, source: Any, problem: Any, own: Any, length: int, notes: list[str]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """(splits, classes, fingerprint in a list) of what is fine-tuned on: files of the problem's own kind, the texts of
    downstream.root, or the corpus's own, whose fingerprint is known. Empty where there is nothing."""
    if hasattr(problem, "sets") and cfg.downstream.root:
        sets, classes, mark = problem.sets(cfg.downstream, own, length, notes)
        return sets, classes, [mark]
    if hasattr(problem, "sets") and cfg.stage != "pretrain":
        raise UserError(f"downstream.root: downstream={cfg.downstream.name} needs a file or folder of its own")
    if cfg.downstream.root:
        with text.as_downstream():
            other = text.read(cfg.downstream, labelled=True)
        notes += other.notes
        return framed(other, own, length), other.classes, [other.fingerprint]
    if not source.classes:
        return {}, [], []
    return framed(source, own, length), source.classes, []


def fingerprint_of(marks: list[Any]) -> str:
    return hashlib.sha256("/".join(map(str, marks)).encode()).hexdigest()


def without(rows: Tensor, count: int) -> Tensor:
    """0 ... count - 1 but for these."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero()[:, 0]


def packed(tokenized: Any, length: int, family: Any, apart: bool) -> Sequences:
    """All blocks of a corpus; those of causal models are text and marks alone."""
    blocks = tokenized.blocks(length, framed=getattr(family, "FRAMED", True), apart=apart)
    return Sequences(blocks, torch.arange(len(blocks)))


def framed(source: Any, tokenizer: Any, length: int) -> dict[str, TextSplit]:
    """The labelled splits of a source, every text with its special tokens and at most `length` tokens."""
    found = {}
    for name, part in source.parts.items():
        firsts, seconds = list(part.documents()), part.seconds
        ids = tokenizer.encode(firsts)
        others = tokenizer.encode(seconds) if seconds else [None] * len(ids)
        pairs = [tokenizer.frame(a, b, length) for a, b in zip(ids, others, strict=True)]
        labels = None if part.labels is None else torch.from_numpy(part.labels)
        found[name] = TextSplit(
            [ids for ids, _ in pairs],
            [types for _, types in pairs],
            firsts,
            tokenizer.vocabulary.pad,
            torch.arange(len(firsts)),
            labels,
            part.groups,
            seconds,
        )
    return found
