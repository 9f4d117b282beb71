"""A tag for every word (names in BIO tags, parts of speech): a linear head on the first sub-word of each, cross-entropy.

Files have one word a line with its columns, and an empty line after each sentence (CoNLL-2003: Tjong Kim Sang and De Meulder
2003, arXiv:cs/0306050). A name is right when its first word, its last word and its type are, as conlleval counts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ptmrun.downstream.classification import calibration_error
from ptmrun.downstream.token_classification.split import Sentences


def valid(predictions: dict[str, Tensor], split: Sentences, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    tags, confidence = predictions.get("tags", torch.empty(0)), predictions.get("confidence", torch.empty(0))
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


def guesses(predictions: dict[str, Tensor], split: Sentences) -> list[np.ndarray]:
    """The tag of each word, of each sentence: int [words]. Words that the model does not see have O, or where tags are plain
    none: -1."""
    if "words" in predictions:  # of a floor
        ends = np.cumsum([len(split.words[r]) for r in split.rows.tolist()])
        return np.split(predictions["words"].numpy(), ends[:-1])
    return of_words(predictions["tags"].numpy(), split, 0 if split.bio else -1)


def spans(tags: list[str]) -> set[tuple[str, int, int]]:
    """The names that BIO tags mark: (kind, first word, the one after the last). An I-X that goes on with nothing begins a name,
    as conlleval has it."""
    names: set[tuple[str, int, int]] = set()
    start, before = 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        begins = tag[0] == "B" or tag[1:] != before[1:] or (tag == "I" and before == "O")
        if before != "O" and (tag == "O" or begins):
            names.add((before[1:].removeprefix("-"), start, place))
        if begins:
            start = place
        before = tag
    return names


def names(tags: Iterable[np.ndarray], split: Sentences) -> list[set[tuple[str, int, int]]]:
    return [spans([split.classes[t] for t in sentence]) for sentence in tags]


def truth(split: Sentences) -> list[np.ndarray]:
    """The tag of each word, of each sentence: int [words]."""
    return [split.tags[r] for r in split.rows.tolist()]


def counts(predictions: dict[str, Tensor], split: Sentences, kind: str | None = None) -> np.ndarray:
    """Of each sentence, how many names there are, how many were found, and how many of these rightly: [N, 3]. Of one kind, or
    of all; where tags are plain, of words."""
    if not split.bio:
        pairs = zip(truth(split), guesses(predictions, split), strict=True)
        return np.array([(len(a), len(a), int((a == b).sum())) for a, b in pairs])
    named = zip(names(truth(split), split), names(guesses(predictions, split), split), strict=True)
    return np.array([[sum(kind in (None, name[0]) for name in some) for some in (a, b, a & b)] for a, b in named])


def f1(true: Any, guessed: Any, right: Any) -> float:
    return ratio(2 * right, true + guessed)


def ratio(a: Any, b: Any) -> float:
    """0 where there is nothing."""
    return float(a / b) if b else 0.0


def score(predictions: dict[str, Tensor], split: Sentences) -> float:
    return f1(*counts(predictions, split).sum(0))


def per_sample_scores(predictions: dict[str, Tensor], split: Sentences) -> np.ndarray:
    """What each sentence has to do with the F1 of all, [N]: their mean is that F1, and their spread tells its noise.

    F1 is a ratio of sums, 2 right / (true + guessed), so a sentence changes it by (2 right - F1 (true + guessed)) of its own over
    the mean of true + guessed (the delta method); a sentence may be below 0 or above 1.
    """
    true, guessed, right = counts(predictions, split).T
    value = f1(true.sum(), guessed.sum(), right.sum())
    size = (true + guessed).mean()
    return value + (2 * right - value * (true + guessed)) / size if size else np.zeros(len(true))


def baseline_predictions(kind: str, data: Any, train: Sentences, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
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


def columns_of_predictions(predictions: dict[str, Tensor], split: Sentences, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: words, and with spaces between them their tags and the predicted ones ("-" for none); how sure each
    prediction is, nothing for words that the model does not see."""

    def joined(tags: Iterable[np.ndarray]) -> pa.Array:
        return pa.array([" ".join(classes[t] if t >= 0 else "-" for t in sentence) for sentence in tags], pa.string())

    sure = of_words(predictions["confidence"].numpy(), split, np.nan)
    return {
        "words": pa.array([split.words[r] for r in split.rows.tolist()], pa.list_(pa.string())),
        "label": joined(truth(split)),
        "prediction": joined(guesses(predictions, split)),
        "confidence": pa.array([[None if np.isnan(c) else c for c in line] for line in sure], pa.list_(pa.float32())),
    }


def answer_rows(predictions: dict[str, Tensor], split: Sentences, classes: list[str], top: int) -> list[dict[str, Any]]:
    """The words of each sentence, their tags, or None, and how sure each is, None for words that the model does not see."""
    tags, sure = guesses(predictions, split), of_words(predictions["confidence"].numpy(), split, np.nan)
    return [
        {
            "words": split.words[r],
            "prediction": [classes[t] if t >= 0 else None for t in own.tolist()],
            "confidence": [None if np.isnan(c) else float(c) for c in values],
        }
        for r, own, values in zip(split.rows.tolist(), tags, sure, strict=True)
    ]


def averaged(predictions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tag of each token for which several models have the largest sum of confidences, and that sum a model."""
    tags, sure = (torch.stack([p[name] for p in predictions]) for name in ("tags", "confidence"))
    votes = torch.stack([(sure * (tags == choice)).sum(0) for choice in tags])
    best = votes.max(0)
    return {"tags": tags.gather(0, best.indices[None])[0], "confidence": best.values / len(predictions)}


def metrics(predictions: dict[str, Tensor], split: Sentences, classes: list[str], bins: int) -> dict[str, Any]:
    """F1; accuracy a word; the calibration error of the words that the model sees (see classification). Of BIO tags precision and
    recall, and these of each kind of names; of plain tags the same of each tag, and the confusion matrix of the words seen."""
    right, guess = np.concatenate(truth(split)), np.concatenate(guesses(predictions, split))
    sure = np.concatenate(of_words(predictions["confidence"].numpy(), split, np.nan))
    seen = ~np.isnan(sure)
    general = {
        "accuracy": float((right == guess).mean()),
        "ece": calibration_error(sure[seen], (right == guess)[seen], bins),
        "words": len(right),
        "words_not_seen": int((~seen).sum()),
    }
    if split.bio:
        kinds = sorted({tag[1:].removeprefix("-") for tag in classes if tag != "O"})
        result = scores(*counts(predictions, split).sum(0))
        return result | general | {"per_class": {kind: scores(*counts(predictions, split, kind).sum(0)) for kind in kinds}}
    from sklearn.metrics import confusion_matrix

    numbers = np.arange(len(classes))
    table = confusion_matrix(right[seen], guess[seen], labels=numbers)
    tallies = [((right == c).sum(), (guess == c).sum(), ((right == c) & (guess == c)).sum()) for c in numbers]
    of_tags = {name: scores(*tally) for name, tally in zip(classes, tallies, strict=True)}
    there = {name: s["f1"] for (name, s), tally in zip(of_tags.items(), tallies, strict=True) if tally[0] + tally[1]}
    absent = [name for name in classes if name not in there]
    macro = {"f1_macro": float(np.mean(list(there.values()))), "absent": absent}
    return {"f1": general["accuracy"], **macro, **general, "per_class": of_tags, "confusion": table.tolist()}


def scores(true: Any, guessed: Any, right: Any) -> dict[str, float]:
    parts = {"f1": f1(true, guessed, right), "precision": ratio(right, guessed), "recall": ratio(right, true)}
    return parts | {"n": int(true)}
