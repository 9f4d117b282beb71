"""Extractive question answering (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250; questions without an answer: 2018,
arXiv:1806.03822): of each token, whether the answer starts and whether it ends there.

A context that is too long for the model is read in windows that overlap (Devlin et al. 2019). A sample is a question: it is
trained on with the window that shows its answer best, and answered by the best span of all its windows. Where splits or folds are
made here, all questions about one context are in one of them.
"""

import functools
import re
import string
import unicodedata
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ptmrun.data.text import scripts
from ptmrun.downstream.question_answering.answers import guesses
from ptmrun.downstream.question_answering.split import Questions

ARTICLES = re.compile(r"\b(a|an|the)\b")


def valid(predictions: dict[str, Tensor], split: Questions, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    logits = predictions.get("logits", torch.empty(0))
    return logits.is_floating_point() and logits.shape == (sum(len(split.ids[w]) for own in split.own() for w in own), 2)


@functools.lru_cache(maxsize=2**16)
def punctuation(character: str, scoring: str) -> bool:
    """squad: of ASCII; mlqa: of all scripts."""
    return character in string.punctuation or (scoring == "mlqa" and unicodedata.category(character)[0] == "P")


def normalised(answer: str, scoring: str = "squad") -> str:
    """As SQuAD's evaluation script does: lower case, no punctuation, no articles, single spaces. mlqa: as that of MLQA (Lewis et
    al. 2020, arXiv:1910.07475) punctuation is that of all scripts, and characters of scripts without spaces are words."""
    bare = "".join(c for c in answer.lower() if not punctuation(c, scoring))
    return " ".join(ARTICLES.sub(" ", scripts.apart(bare) if scoring == "mlqa" else bare).split())


def word_f1(guess: str, right: str, scoring: str = "squad") -> float:
    """Of the words that both have, as often as they have them (SQuAD's evaluation script 1.1)."""
    a, b = normalised(guess, scoring).split(), normalised(right, scoring).split()
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0


def f1_of(guess: str, answers: list[str], scoring: str = "squad") -> float:
    """By the nearest of the right answers; of a question that has none, whether nothing was answered (script 2.0)."""
    return max(word_f1(guess, right, scoring) for right in answers) if answers else exact_of(guess, answers, scoring)


def exact_of(guess: str, answers: list[str], scoring: str = "squad") -> float:
    return float(any(normalised(guess, scoring) == normalised(right, scoring) for right in answers or [""]))


def per_sample_scores(predictions: dict[str, Tensor], split: Questions) -> np.ndarray:
    """The F1 of each answer, [N]."""
    pairs = zip(guesses(predictions, split), split.asked(), strict=True)
    return np.array([f1_of(guess, question.answers, split.scoring) for guess, question in pairs])


def score(predictions: dict[str, Tensor], split: Questions) -> float:
    return float(per_sample_scores(predictions, split).mean())


def columns_of_predictions(predictions: dict[str, Tensor], split: Questions, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the question's id, its first answer and the predicted one, and whether that is right exactly."""
    asked, answers = split.asked(), guesses(predictions, split)
    exact = [exact_of(guess, question.answers, split.scoring) for guess, question in zip(answers, asked, strict=True)]
    return {
        "id": pa.array([question.name for question in asked], pa.string()),
        "label": pa.array([next(iter(question.answers), "") for question in asked], pa.string()),
        "prediction": pa.array(answers, pa.string()),
        "exact_match": pa.array(exact),
    }


def metrics(predictions: dict[str, Tensor], split: Questions, classes: list[str], bins: int) -> dict[str, Any]:
    """F1 and exact match, and as whose evaluation script counts them; where some questions have no answer, also of these and of
    the others."""
    pairs = list(zip(guesses(predictions, split), split.asked(), strict=True))
    f1 = np.array([f1_of(guess, question.answers, split.scoring) for guess, question in pairs])
    exact = np.array([exact_of(guess, question.answers, split.scoring) for guess, question in pairs])
    there = np.array([bool(question.answers) for _, question in pairs])

    def of(chosen: np.ndarray) -> dict[str, Any]:
        return {"f1": float(f1[chosen].mean()), "exact_match": float(exact[chosen].mean())}

    result = {**of(np.ones(len(there), dtype=bool)), "signatures": {"f1": split.scoring}}
    if there.all():
        return result
    kinds = {"answered": there, "unanswered": ~there}
    return result | {name: {**of(chosen), "n": int(chosen.sum())} for name, chosen in kinds.items() if chosen.any()}
