"""What is answered without reading."""

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.data.text import scripts
from ptmrun.data.text.sentences import ends
from ptmrun.downstream.question_answering.split import Questions

WORD = re.compile(r"\w[\w’'-]*")


def baseline_predictions(kind: str, data: Any, train: Questions, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
    """What is answered without reading, as characters of the context [N, 2]: chance, the most frequent answer of the training
    questions where the context has it, else its first capitalised words; raw, of the sentence that shares most different words
    with the question the first capitalised words that the question has not (and if there are others, not its first word)."""
    counts = Counter(question.answers[0] for question in data.train.asked() if question.answers)
    most = max(counts, key=lambda answer: (counts[answer], answer), default="")
    spans = []
    for question in data.test.asked():
        context = data.test.contexts[question.context]
        if kind == "raw":
            spans.append(lexical(question.text, context))
            continue
        place = context.find(most)
        spans.append((place, place + len(most)) if place >= 0 else next(iter(capitalised(context)), (0, 0)))
    return {"spans": torch.tensor(spans)}


def capitalised(text: str, start: int = 0) -> list[tuple[int, int]]:
    """Runs of words that begin with a capital and stand one space apart, as characters counted from `start`; where there is none,
    the first word."""
    words = [word.span() for word in WORD.finditer(text)]
    runs: list[tuple[int, int]] = []
    for a, b in words:
        if text[a].isupper():
            begin = runs.pop()[0] if runs and text[runs[-1][1] : a] == " " else a
            runs.append((begin, b))
    return [(start + a, start + b) for a, b in runs or words[:1]]


def words(text: str) -> set[str]:
    """In lower case; of scripts without spaces the characters."""
    return {word.lower() for word in WORD.findall(scripts.apart(text))}


def lexical(question: str, context: str) -> tuple[int, int]:
    """The `raw` baseline's answer; see `floor`."""
    asked = words(question)
    cuts = [0, *ends(context), len(context)]
    a, b = max(itertools.pairwise(cuts), key=lambda s: len(asked & words(context[s[0] : s[1]])))
    runs = capitalised(context[a:b], a)

    def rank(run: tuple[int, int]) -> tuple[bool, bool]:
        return bool(words(context[run[0] : run[1]]) & asked), not context[a : run[0]].strip()

    return min(runs, key=rank, default=(0, 0))
