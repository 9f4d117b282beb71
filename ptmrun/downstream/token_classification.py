"""A tag for every word (names in BIO tags, parts of speech): a linear head on the first sub-word of each, cross-entropy.

Files have one word a line with its columns, and an empty line after each sentence (CoNLL-2003: Tjong Kim Sang and De Meulder
2003, arXiv:cs/0306050). A name is right when its first word, its last word and its type are, as conlleval counts.
"""

import functools
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.data.text import spans as spans_of
from ptmrun.data.text.load import TextSplit
from ptmrun.downstream.classification import calibration_error
from ptmrun.downstream.token_head import Tokenwise
from ptmrun.downstream.token_head import few as few
from ptmrun.errors import UserError, printable
from ptmrun.loss import Loss, smoothed_entropy
from ptmrun.models.modes import evaluating

METRIC = "f1"  # of whole names (BIO); of plain tags micro-averaged over words, which is the share of right words


COUNTED = "labelled sentences"  # what `labels_per_class` counts, in all


FLOORS = ("chance", "raw")


MOST_RAW = 10**9  # training samples of the raw baseline: counting words takes no time


WORDS = {
    "chance": "always the most frequent tag",
    "raw": "each word's most frequent tag in training",
}


SUFFIXES = (".conll", ".txt", ".tsv", ".bio")


NONE = -100  # the label of a token that is not asked for


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


@dataclass(kw_only=True)
class Sentences(TextSplit):
    """Sentences of one split; of all of the source: words, tags (numbers [words]) and places (of each word's first sub-word in
    the frame [words], -1 where the model does not see it)."""

    words: list[list[str]]
    tags: list[np.ndarray]
    places: list[np.ndarray]
    classes: list[str]
    bio: bool
    answered = True

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest sentence of the source."""
        return max(map(len, self.ids))

    def by_length(self) -> tuple[Self, slice]:
        """They stay in order, as the tags of one stand behind those of another."""
        return self, slice(None)

    def answers(self, indices: Tensor) -> Tensor:
        """The tag at the first sub-word of each word and NONE elsewhere: [B, T], T at least that of any batch."""
        rows = self.rows[indices].tolist()
        found = torch.full((len(rows), self.longest), NONE)
        for line, r in zip(found, rows, strict=True):
            seen = self.places[r] >= 0
            line[torch.from_numpy(self.places[r][seen])] = torch.from_numpy(self.tags[r][seen])
        return found


class Tagger(Tokenwise):
    def __init__(self, encoder: Any, classes: int, label_smoothing: float):
        super().__init__(encoder, classes)
        self.label_smoothing = label_smoothing

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, T], labels [B, T or more] as `Sentences.answers` gives them. Cross-entropy a word."""
        labels = batch["labels"][:, : batch["inputs"].ids.shape[1]]
        chosen = labels != NONE
        logits, labels = self.logits(batch["inputs"], chosen), labels[chosen]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        right = (logits.detach().argmax(1) == labels).sum()
        return Loss(loss, len(labels)), {"accuracy": Loss(right, len(labels))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities, smoothed labels or not: ln(classes)."""
        return math.log(self.head.out_features)

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of the smoothed labels themselves: their entropy."""
        return smoothed_entropy(self.label_smoothing, self.head.out_features)

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The tag of every token, and its probability, one text after the other without padding: [tokens] on the CPU."""
        with evaluating(self):
            found = [self.logits(tokens, tokens.mask).softmax(1).max(1) for tokens in batches]
        tags = torch.cat([best.indices.to("cpu", torch.int16) for best in found])
        return {"tags": tags, "confidence": torch.cat([best.values.cpu() for best in found])}


def build(encoder: Any, data: Any, options: Any) -> Tagger:
    return Tagger(encoder, len(data.classes), options.label_smoothing)


def sets(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, Sentences], list[str], str]:
    """(splits, tags, fingerprint) of the column files below downstream.root. Raises UserError for files that cannot be used."""
    digest = hashlib.sha256(f"{options.token_column} {options.tag_column} {options.scheme} {options.repair}".encode())
    read: dict[str, list[Sentence]] = {}
    for name, paths in spans_of.files(options.root, SUFFIXES).items():
        read[name] = []
        for path in paths:
            text = spans_of.read(path, options)
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
    found, place = [Sentence(path, [], [], [])], 0
    for place, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith(DOCUMENT):
            if found[-1].words:
                found.append(Sentence(path, [], [], []))
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
        found[-1].lines.append(place)
        found[-1].words.append(cells[token])
        found[-1].tags.append(cells[tag])
    found = [s for s in found if s.words]
    if not found:
        raise UserError(f"{path}: holds no sentences; expected a word and its tag a line, and empty lines between sentences")
    return found


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
    found, broken = [], 0
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
        found.append(s._replace(tags=tags))
    return found, broken


def split_of(part: list[Sentence], classes: list[str], bio: bool, tokenizer: Any, length: int) -> Sentences:
    """Sentences as token numbers, their words' first sub-words found by the characters that tokens stand for."""
    number = {tag: i for i, tag in enumerate(classes)}
    texts = [" ".join(s.words) for s in part]
    frames, places = [], []
    for s, found in zip(part, spans_of.encoded(tokenizer, texts), strict=True):
        frame = spans_of.framed(tokenizer, found.ids, None, length)
        starts = np.cumsum([0, *(len(word) + 1 for word in s.words[:-1])])
        written = np.nonzero(found.spans[:, 1] > found.spans[:, 0])[0]
        owners, firsts = np.unique(np.searchsorted(starts, found.spans[written, 0], side="right") - 1, return_index=True)
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
        words=[s.words for s in part],
        tags=[np.array([number[tag] for tag in s.tags]) for s in part],
        places=places,
        classes=classes,
        bio=bio,
    )


def fits(found: dict[str, Tensor], split: Sentences, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    tags, confidence = found.get("tags", torch.empty(0)), found.get("confidence", torch.empty(0))
    right = tags.shape == confidence.shape == (int(split.lengths.sum()),)
    right = right and not tags.is_floating_point() and confidence.is_floating_point()
    return right and bool((tags >= 0).all()) and bool((tags < len(classes)).all())


def of_words(values: np.ndarray, split: Sentences, unseen: float) -> list[np.ndarray]:
    """What was found at the first sub-word of each word, of each sentence [words]; `unseen` for words that the model does not
    see. values: of all tokens, one text after the other."""
    result, start = [], 0
    for r in split.rows.tolist():
        places = split.places[r]
        result.append(np.where(places >= 0, values[start + np.maximum(places, 0)], unseen))
        start += len(split.ids[r])
    return result


def guesses(found: dict[str, Tensor], split: Sentences) -> list[np.ndarray]:
    """The tag of each word, of each sentence: int [words]. Words that the model does not see have O, or where tags are plain
    none: -1."""
    if "words" in found:  # of a floor
        ends = np.cumsum([len(split.words[r]) for r in split.rows.tolist()])
        return np.split(found["words"].numpy(), ends[:-1])
    return of_words(found["tags"].numpy(), split, 0 if split.bio else -1)


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """The names that BIO tags mark: (kind, first word, the one after the last). An I-X that goes on with nothing begins a name,
    as conlleval has it."""
    found: set[tuple[str, int, int]] = set()
    start, before = 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        begins = tag[0] == "B" or tag[1:] != before[1:] or (tag == "I" and before == "O")
        if before != "O" and (tag == "O" or begins):
            found.add((before[1:].removeprefix("-"), start, place))
        if begins:
            start = place
        before = tag
    return found


def names(tags: Iterable[np.ndarray], split: Sentences) -> list[set[tuple[str, int, int]]]:
    return [spans([split.classes[t] for t in sentence]) for sentence in tags]


def truth(split: Sentences) -> list[np.ndarray]:
    """The tag of each word, of each sentence: int [words]."""
    return [split.tags[r] for r in split.rows.tolist()]


def counts(found: dict[str, Tensor], split: Sentences, kind: str | None = None) -> np.ndarray:
    """Of each sentence, how many names there are, how many were found, and how many of these rightly: [N, 3]. Of one kind, or
    of all; where tags are plain, of words."""
    if not split.bio:
        pairs = zip(truth(split), guesses(found, split), strict=True)
        return np.array([(len(a), len(a), int((a == b).sum())) for a, b in pairs])
    named = zip(names(truth(split), split), names(guesses(found, split), split), strict=True)
    return np.array([[sum(kind in (None, name[0]) for name in some) for some in (a, b, a & b)] for a, b in named])


def f1(true: Any, guessed: Any, right: Any) -> float:
    return ratio(2 * right, true + guessed)


def ratio(a: Any, b: Any) -> float:
    """0 where there is nothing."""
    return float(a / b) if b else 0.0


def score(found: dict[str, Tensor], split: Sentences) -> float:
    return f1(*counts(found, split).sum(0))


def each(found: dict[str, Tensor], split: Sentences) -> np.ndarray:
    """What each sentence has to do with the F1 of all, [N]: their mean is that F1, and their spread tells its noise.

    F1 is a ratio of sums, 2 right / (true + guessed), so a sentence changes it by (2 right - F1 (true + guessed)) of its own over
    the mean of true + guessed (the delta method); a sentence may be below 0 or above 1.
    """
    true, guessed, right = counts(found, split).T
    value = f1(true.sum(), guessed.sum(), right.sum())
    size = (true + guessed).mean()
    return value + (2 * right - value * (true + guessed)) / size if size else np.zeros(len(true))


def floor(kind: str, data: Any, train: Sentences, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
    """What counting says of each word of the test split, [words] of one sentence after the other: chance, the most frequent tag;
    raw, the word's most frequent one in training, of unknown words the most frequent of all."""
    seen: dict[str, Counter[int]] = defaultdict(Counter)
    whole: Counter[int] = Counter()
    shown = data.train if kind == "chance" else train
    for r in shown.rows.tolist():
        tags = shown.tags[r].tolist()
        whole.update(tags)
        for word, tag in zip(shown.words[r], tags, strict=True):
            seen[word][tag] += 1
    most = most_frequent(whole)
    known = {word: most_frequent(tags) for word, tags in seen.items()} if kind == "raw" else {}
    words = [word for r in data.test.rows.tolist() for word in data.test.words[r]]
    return {"words": torch.tensor([known.get(word, most) for word in words])}


def most_frequent(tags: Counter[int]) -> int:
    return max(tags, key=lambda tag: (tags[tag], -tag))


def columns(found: dict[str, Tensor], split: Sentences, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: words, and with spaces between them their tags and the predicted ones ("-" for none); how sure each
    prediction is, nothing for words that the model does not see."""

    def joined(tags: Iterable[np.ndarray]) -> pa.Array:
        return pa.array([" ".join(classes[t] if t >= 0 else "-" for t in sentence) for sentence in tags], pa.string())

    sure = of_words(found["confidence"].numpy(), split, np.nan)
    return {
        "words": pa.array([split.words[r] for r in split.rows.tolist()], pa.list_(pa.string())),
        "label": joined(truth(split)),
        "prediction": joined(guesses(found, split)),
        "confidence": pa.array([[None if np.isnan(c) else c for c in line] for line in sure], pa.list_(pa.float32())),
    }


def metrics(found: dict[str, Tensor], split: Sentences, classes: list[str], bins: int) -> dict[str, Any]:
    """F1; accuracy a word; the calibration error of the words that the model sees (see classification). Of BIO tags precision and
    recall, and these of each kind of names; of plain tags the same of each tag, and the confusion matrix of the words seen."""
    right, guess = np.concatenate(truth(split)), np.concatenate(guesses(found, split))
    sure = np.concatenate(of_words(found["confidence"].numpy(), split, np.nan))
    seen = ~np.isnan(sure)
    general = {
        "accuracy": float((right == guess).mean()),
        "ece": calibration_error(sure[seen], (right == guess)[seen], bins),
        "words": len(right),
        "words_not_seen": int((~seen).sum()),
    }
    if split.bio:
        kinds = sorted({tag[1:].removeprefix("-") for tag in classes if tag != "O"})
        result = scores(*counts(found, split).sum(0))
        return result | general | {"per_class": {kind: scores(*counts(found, split, kind).sum(0)) for kind in kinds}}
    from sklearn.metrics import confusion_matrix

    numbers = np.arange(len(classes))
    table = confusion_matrix(right[seen], guess[seen], labels=numbers)
    tallies = [((right == c).sum(), (guess == c).sum(), ((right == c) & (guess == c)).sum()) for c in numbers]
    of_tags = {name: scores(*tally) for name, tally in zip(classes, tallies, strict=True)}
    macro = float(np.mean([s["f1"] for s in of_tags.values() if s["n"]]))
    return {"f1": general["accuracy"], "f1_macro": macro, **general, "per_class": of_tags, "confusion": table.tolist()}


def scores(true: Any, guessed: Any, right: Any) -> dict[str, float]:
    parts = {"f1": f1(true, guessed, right), "precision": ratio(right, guessed), "recall": ratio(right, true)}
    return parts | {"n": int(true)}
