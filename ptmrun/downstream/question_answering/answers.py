"""Answers from the logits of windows."""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.downstream.question_answering.split import Question, Questions

LISTED = 20  # answers among which one is likely


def guesses(predictions: dict[str, Tensor], split: Questions) -> list[str]:
    """The answer to each question; nothing where the split may have such questions and that is likelier."""
    if "spans" in predictions:  # of a floor
        pairs = zip(split.asked(), predictions["spans"].tolist(), strict=True)
        return [split.contexts[question.context][a:b] for question, (a, b) in pairs]
    return ["" if place is None else split.contexts[q.context][slice(*place)] for q, place in best_places(predictions, split)]


def best_places(predictions: dict[str, Tensor], split: Questions) -> Iterator[tuple[Question, tuple[int, int] | None]]:
    """Each question, and the first character of its answer in the context and the one after the last, or None."""
    for question, empty, windows in judged(predictions, split):
        best, place = -np.inf, (0, 0)
        for logits, written in windows:
            value, first, last = best_span(logits, written, split.longest)
            if value > best:
                best, place = value, (int(written[first, 0]), int(written[last, 1]))
        yield question, None if split.nothing and empty > best else place


def answer_rows(predictions: dict[str, Tensor], split: Questions, classes: list[str], top: int) -> list[dict[str, Any]]:
    """The answer, where it stands in the context (its first character, and the one after its last; None where there is none), how
    likely it is among the 20 likeliest, and the `top` likeliest."""
    rows = []
    likeliest = n_best(predictions, split, max(top, LISTED)).values()
    for (question, place), answers in zip(best_places(predictions, split), likeliest, strict=True):
        text = "" if place is None else split.contexts[question.context][slice(*place)]
        chances = {answer["text"]: answer["probability"] for answer in answers}
        start, end = place or (None, None)
        row = {"question": question.text, "prediction": text, "start": start, "end": end, "confidence": chances.get(text, 0.0)}
        rows.append({**row, "probabilities": dict(list(chances.items())[:top])})
    return rows


def averaged(predictions: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the logits of several models."""
    return {"logits": torch.stack([p["logits"] for p in predictions]).mean(0)}


def judged(
    predictions: dict[str, Tensor], split: Questions
) -> Iterator[tuple[Question, float, list[tuple[np.ndarray, np.ndarray]]]]:
    """Each question, the score of no answer, and of the context's tokens in each of its windows what the model says and which
    characters they stand for, [n, 2] each. In float64, where sums of any two float32 are finite."""
    logits, place = predictions["logits"].double().numpy(), 0
    for question, own in zip(split.asked(), split.own(), strict=True):
        spans, empty, windows = split.spans[question.context], np.inf, []
        for window in (split.windows[w] for w in own):
            mine = logits[place : place + len(window.ids)]
            place += len(window.ids)
            empty = min(empty, mine[-1].sum())
            written = spans[window.first : window.first + window.size]
            windows.append((mine[window.place : window.place + window.size], written))
        yield question, float(empty), windows


def best_span(logits: np.ndarray, spans: np.ndarray, longest: int) -> tuple[float, int, int]:
    """(start + end, first, last) of the span where `span_scores` is largest. logits, spans: [n, 2]."""
    if not len(logits):
        return -np.inf, 0, 0
    sums = span_scores(logits, spans, longest)
    first, last = np.unravel_index(sums.argmax(), sums.shape)
    return float(sums[first, last]), int(first), int(last)


def span_scores(logits: np.ndarray, spans: np.ndarray, longest: int) -> np.ndarray:
    """start + end of every [first, last], [n, n]; -inf but for spans of at most `longest` tokens that start and end at tokens
    which stand for something. logits, spans: [n, 2]."""
    start, end = np.where((spans[:, 1] > spans[:, 0])[:, None], logits, -np.inf).T
    return np.where(band(len(start), longest), start[:, None] + end, -np.inf)


@functools.lru_cache(maxsize=16)
def band(n: int, longest: int) -> np.ndarray:
    """Which [first, last] are spans of 1 to `longest` tokens."""
    ahead = np.arange(n) - np.arange(n)[:, None]
    return (ahead >= 0) & (ahead < longest)


def n_best(predictions: dict[str, Tensor], split: Questions, most: int) -> dict[str, list[dict[str, Any]]]:
    """{id of a question: its likeliest different answers, at most `most`, the best first, which is the prediction}.

    score: start + end; probability: softmax of the scores listed, as in nbest_predictions.json of BERT's run_squad. Where the
    split may have questions without an answer, "" is one.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    seen: Counter[str] = Counter()  # ids may be those of several questions
    for question, empty, windows in judged(predictions, split):
        scores, places = [np.zeros(0)], [np.zeros((0, 2), dtype=int)]
        for logits, written in windows:
            sums = span_scores(logits, written, split.longest)
            first, last = np.nonzero(np.isfinite(sums))
            scores.append(sums[first, last])
            places.append(np.stack([written[first, 0], written[last, 1]], 1))
        value, place, answers = np.concatenate(scores), np.concatenate(places), dict[str, float]()
        for i in np.argsort(-value, kind="stable"):
            answers.setdefault(split.contexts[question.context][slice(*place[i])], float(value[i]))
            if len(answers) == most:
                break
        if split.nothing or not answers:
            answers[""] = empty
        best = sorted(answers.items(), key=lambda answer: -answer[1])[:most]
        odds = np.exp([score - best[0][1] for _, score in best])
        chances = (odds / odds.sum()).tolist()
        seen[question.name] += 1
        name = question.name if seen[question.name] == 1 else f"{question.name} ({seen[question.name]})"
        result[name] = [
            {"text": text, "probability": chance, "score": score} for (text, score), chance in zip(best, chances, strict=True)
        ]
    return result


def files(predictions: dict[str, Tensor], split: Questions, options: Any) -> dict[str, Any]:
    """What a run keeps of its predictions beside predictions.parquet: {name of a JSON file: content}."""
    return {"n_best.json": n_best(predictions, split, options.n_best)}
