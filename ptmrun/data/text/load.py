"""Texts as the data of a run: a tokenized corpus to pretrain on, and labelled texts, from raw files. Splits never depend on the
run's seed."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.config.specs import spec
from ptmrun.data import modality
from ptmrun.data.modality import Data, Picture
from ptmrun.data.sources import text
from ptmrun.data.splits import divide, no_classes, test_seen
from ptmrun.data.text import corpus, sentences, tf_idf, tokenizer, tokenizer_training
from ptmrun.data.text.batches import TextBatches
from ptmrun.data.text.processor import TextProcessor
from ptmrun.data.text.split import Sequences, TextSplit, framed
from ptmrun.errors import UserError

MOST_UNKNOWN, SAID_UNKNOWN = 0.9, 0.005  # of the characters of texts: refused, and said
SAID_CUT = 0.02  # of the labelled texts: that more of them are cut is worth another length
SHOWN = 24  # tokens of a text in the picture of attention
LENGTH = 128  # tokens of a sequence, for model.length=auto


@dataclass(kw_only=True)
class Texts(Data):
    """Without labels its splits are the corpus's own."""

    noun = "texts"
    raw_baselines = ("raw", "raw_chars")

    sequences: Sequences
    val_corpus: Sequences
    test_corpus: Sequences | None  # where the corpus came with one
    tokenizer: Any  # tokenizer.Tokenizer
    length: int
    corpus_fingerprint: str

    @property
    def corpus(self) -> Sequences:
        return self.sequences

    @property
    def corpus_print(self) -> str:
        return self.corpus_fingerprint

    @property
    def resolved_settings(self) -> dict[str, Any]:
        return {"model__length": self.length, "model__vocabulary": self.tokenizer.vocabulary.size}

    @property
    def facts(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.fingerprint, "tokens": self.corpus.blocks.corpus.tokens, **self.train.facts}

    def __str__(self) -> str:
        vocabulary = f"a vocabulary of {self.tokenizer.vocabulary.size:,}"
        corpus = f"{self.corpus.blocks.corpus.tokens:,} tokens, {vocabulary}, {len(self.corpus):,} sequences of {self.length}"
        return f"{corpus}, {len(self.classes)} classes" if self.classes else corpus

    def processor(self, device: torch.device) -> TextProcessor:
        return TextProcessor(self.tokenizer, self.length, device)

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.limit(self.length)
        self.tokenizer.save(folder)

    def batches(
        self, model: Any, split: Any, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Any
    ) -> TextBatches:
        return TextBatches(split, inputs, size, min(loop.accumulate, size), seed, purpose, model.pairs)

    def raw(self, kind: str, train: TextSplit) -> tuple[Any, Any, float]:
        """TF-IDF of words and pairs of words, or of two to five characters inside words, as the training texts have them."""
        texts = train.read()
        vectorizer = (
            tf_idf.characters(texts) if kind == "raw_chars" else tf_idf.words(texts, sublinear_tf=True, ngram_range=(1, 2))
        )
        return vectorizer.transform(texts), vectorizer.transform(self.test.read()), tf_idf.STRENGTH

    def derived_metrics(self, means: dict[str, float], split: Sequences) -> dict[str, float]:
        """Perplexity, of the tokens that are predicted, and with bits_per_token bits_per_byte where tokens hold every byte, so
        that it can be compared between tokenizers."""
        more = {"perplexity": math.exp(min(means.get("loss_mlm", means["held_loss"]), 700.0))}
        if "bits_per_token" in means and self.tokenizer.kind == "bpe":
            more["bits_per_byte"] = means["bits_per_token"] / split.bytes_per_token
        return more

    def pictures_of_samples(self, cfg: Any, processor: Any) -> list[Picture]:
        """How many tokens the labelled texts have."""
        if not isinstance(self.train, TextSplit):
            return []
        counts = {name: split.lengths.numpy() for name, split in {"train": self.train, "test": self.test}.items()}
        return [Picture("lengths", (counts, self.length))]

    def pictures_of_pretraining(
        self, cfg: Any, objective: Any, processor: Any, batch_of: Callable[[Any], dict[str, Any]], autocast: Callable[[], Any]
    ) -> list[Picture]:
        """What the encoder attends to in the sentences that the config gives, or in the beginnings of two held-out sequences."""
        encoder = objective.encoder
        if not encoder.attends:
            return []
        sentences = cfg.pretrain.sentences
        texts = processor.read(sentences) if sentences else next(self.val_corpus.evenly_spaced(2).all())
        tokens = processor(texts).map(lambda x: x[:, :SHOWN])
        lengths = tokens.mask.sum(1).tolist()
        pieces = [self.tokenizer.pieces(row[:n]) for row, n in zip(tokens.ids.tolist(), lengths, strict=True)]
        maps = [weights[:n, :n] for weights, n in zip(encoder.attention(tokens), lengths, strict=True)]
        return [Picture("attention_maps", (pieces, maps))]


def of_run(request: modality.LoadRequest) -> Texts:
    """The texts of a run; see `load`."""
    return load(request.read, request.cfg, request.family, request.problem, request.folder, request.progress, request.longest)


def load(
    read: Callable[[Any], Any],
    cfg: Any,
    family: Any,
    problem: Any,
    folder: Path | None,
    progress: Callable[[str, int, int], None],
    longest: int | None = None,
) -> Texts:
    """Reads the corpus, tokenizes it once, and frames the labelled texts, which are the corpus's own or those of downstream.root.

    `family` is the model's models.base.Family, `problem` the downstream.base.Problem, `folder` where a tokenizer is
    that the run's weights belong to. Raises UserError for data that cannot be used.
    """
    options, source = cfg.dataset, read(cfg.dataset)
    notes = list(source.notes)
    length = min(LENGTH, longest or LENGTH) if cfg.model.length == "auto" else cfg.model.length
    train = source.parts["train"]
    if folder:
        own = tokenizer.of_run(folder, family.framing)
    else:
        own = tokenizer_training.choose(cfg.model, family.tokenizer, family.framing, train, notes, progress)
    refuse_unknown(own, islice(train.documents(), tokenizer_training.SAMPLE), "texts to pretrain on", cfg.model.tokenizer, notes)
    alone = [sentences.CUT, source.fingerprint, own.fingerprint, length, options.val_fraction, options.split_seed]
    sets, classes, other = labelled(cfg, source, problem, own, length, notes)
    again_in_test, ids = 0, no_classes(sets, "texts")
    marks, made = [*alone, *other], dict[str, Any]()
    if sets:
        some = sets["train"].evenly_spaced(tokenizer_training.SAMPLE).read()
        refuse_unknown(own, some, "labelled texts", cfg.model.tokenizer, notes)
        notes += told_cut(sets["train"], own, length)
        first, val, test, made = divide(sets, options, "texts", notes)
        marks += [fingerprint_of(x.rows.tolist()) for x in (first, val, test)]
        again_in_test = test_seen(first, val, test, "texts", notes)
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
    return Texts(
        train=first,
        val=val,
        test=test,
        sequences=sequences,
        val_corpus=judged,
        test_corpus=unseen,
        classes=classes,
        tokenizer=own,
        length=length,
        fingerprint=fingerprint_of(marks),
        corpus_fingerprint=fingerprint_of([*alone, len(sequences)]),
        notes=notes,
        test_seen=again_in_test,
        no_classes=ids,
        created_splits=listed,
    )


def labelled(
    cfg: Any, source: Any, problem: Any, own: Any, length: int, notes: list[str]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """(splits, classes, fingerprint in a list) of what is fine-tuned on: files of the problem's own kind, the texts of
    downstream.root, or the corpus's own, whose fingerprint is known. Empty where there is nothing."""
    if problem.read_splits and cfg.downstream.root:
        sets, classes, mark = problem.read_splits(cfg.downstream, own, length, notes)
        return sets, classes, [mark]
    if problem.read_splits and cfg.stage != "pretrain":
        raise UserError(f"downstream.root: downstream={cfg.downstream.name} needs a file or folder of its own")
    if cfg.downstream.root:
        with text.as_downstream():
            other = text.read(cfg.downstream, labelled=True)
        notes += other.notes
        return framed(other, own, length), other.classes, [other.fingerprint]
    if not source.classes:
        return {}, [], []
    return framed(source, own, length), source.classes, []


def refuse_unknown(own: Any, texts: Iterable[str], what: str, choice: str, notes: list[str]) -> None:
    """Says what share of texts a tokenizer does not know. Raises UserError where it is most of them."""
    share = tokenizer_training.unknown_share(own, texts)
    if share > MOST_UNKNOWN:
        raise UserError(
            f"model.tokenizer={choice}: does not know {share:.0%} of the characters of the {what}; choose unigram or bpe"
        )
    if share >= SAID_UNKNOWN:
        notes.append(f"the tokenizer does not know {share:.1%} of the characters of the {what} (unknown tokens stand for them)")


def told_cut(split: TextSplit, own: Any, length: int) -> list[str]:
    """How many of the labelled texts are cut, where any are."""
    if type(split) is not TextSplit:  # others say in their own words what of them is not seen
        return []
    texts, seconds = split.texts, split.seconds
    counts = own.flat(texts)[1] + (own.flat(seconds)[1] if seconds else 0)
    whole = counts + (own.pair if seconds else own.single).extra
    cut = int((whole > length).sum())
    if not cut:
        return []
    line = f"{cut:,} of {len(texts):,} labelled texts are longer than model.length={length} tokens and are cut"
    more = f"; the longest has {int(whole.max()):,}: raise model.length to see all" if cut > SAID_CUT * len(texts) else ""
    return [line + more]


def fingerprint_of(marks: list[Any]) -> str:
    return hashlib.sha256("/".join(map(str, marks)).encode()).hexdigest()


def without(rows: Tensor, count: int) -> Tensor:
    """0 ... count - 1 but for these."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[rows] = False
    return kept.nonzero()[:, 0]


def packed(tokenized: Any, length: int, family: Any, apart: bool) -> Sequences:
    """All blocks of a corpus; those of causal models are text and marks alone."""
    blocks = tokenized.blocks(length, framed=family.framed, apart=apart)
    return Sequences(blocks, torch.arange(len(blocks)))
