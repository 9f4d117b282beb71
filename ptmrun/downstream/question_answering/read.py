"""SQuAD's JSON -> questions and the windows in which their contexts are read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ptmrun.data.text import scripts, spans
from ptmrun.downstream.question_answering.split import Question, Questions, Window
from ptmrun.errors import UserError, printable

SUFFIXES = (".json",)
LISTED = 10  # in a message
MOST_FOREIGN = 0.005  # of the letters of contexts: up to that they count as English


def read_splits(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, Questions], list[str], str]:
    """(splits, no classes, fingerprint) of the JSON files below downstream.root. Raises UserError where they cannot be used."""
    digest = hashlib.sha256(f"{options.stride} {options.answer_length} {options.max_mismatched}".encode())
    read: dict[str, tuple[list[str], list[Question]]] = {}
    for name, paths in spans.files(options.root, SUFFIXES).items():
        contexts: list[str] = []
        questions: list[Question] = []
        for path in paths:
            text = spans.read(path, options)
            digest.update(f"{name} {len(text)}\n{text}".encode())
            questions += parsed(path, text, options.max_mismatched, contexts, notes)
        read[name] = contexts, questions
    nothing, scoring = not all(q.answers for q in read["train"][1]), options.scoring
    if scoring == "auto":
        scoring = "mlqa" if scripts.beyond_ascii(read["train"][0]) > MOST_FOREIGN else "squad"
    if scoring == "mlqa":
        how = "punctuation of all scripts is left out, and characters of scripts without spaces are words"
        notes.append(f"F1 and exact match as MLQA counts them (downstream.scoring=mlqa): {how}")
    splits = {
        name: split_of(contexts, questions, nothing, scoring, options, tokenizer, length)
        for name, (contexts, questions) in read.items()
    }
    if not nothing:
        for name, (_, questions) in read.items():
            if lacking := sum(not q.answers for q in questions):
                notes.append(
                    f"Warning: {lacking:,} of {len(questions):,} questions of the {name} split have no answer, but all of the "
                    "training split have one: that there is none is not learned, and always counts as wrong"
                )
    for name, split in splits.items():
        several = int((np.diff(split.bounds) > 1).sum())
        if several:
            notes.append(
                f"{name}: the contexts of {several:,} of {len(split):,} questions are read in several windows, "
                f"{len(split.windows):,} in all (model.length={length})"
            )
    return splits, [], digest.hexdigest()


def parsed(path: Path, text: str, most: float, contexts: list[str], notes: list[str], answered: bool = True) -> list[Question]:
    """The questions of a SQuAD file whose answers stand where it says; their contexts are added to `contexts`. Unless `answered`,
    all of them, without answers.

    Raises UserError for what is no such file, and where more than a share `most` of the questions have an answer that is not in
    the context at its answer_start; those are left out else.
    """
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"line {error.lineno} is no JSON ({error.msg})"
        raise UserError(f"{path}: {what}; expected SQuAD's JSON") from None
    except RecursionError:
        raise UserError(f"{path}: its lists are nested too deeply; expected SQuAD's JSON") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: is no JSON ({error}); expected SQuAD's JSON") from None
    questions, wrong, total = [], [], 0

    def inside(value: Any, where: str, key: str, kind: type) -> Any:
        place = f"{where}.{key}".removeprefix(".")
        if not isinstance(value, dict) or key not in value:
            raise UserError(f"{path}: {place} is missing; expected SQuAD's JSON")
        if type(value[key]) is not kind:
            name = {str: "text", int: "a whole number", list: "a list", bool: "true or false"}[kind]
            raise UserError(f"{path}: {place}: expected {name}")
        if kind is str:
            try:
                value[key].encode()
            except UnicodeEncodeError:
                raise UserError(f"{path}: {place}: half a surrogate pair (\\ud800 ...); mend it") from None
        return value[key]

    for a, article in enumerate(inside(whole, "", "data", list)):
        for p, paragraph in enumerate(inside(article, f"data[{a}]", "paragraphs", list)):
            where = f"data[{a}].paragraphs[{p}]"
            context = inside(paragraph, where, "context", str)
            for q, entry in enumerate(inside(paragraph, where, "qas", list)):
                place = f"{where}.qas[{q}]"
                name, asked = inside(entry, place, "id", str), inside(entry, place, "question", str)
                total += 1
                if not answered or ("is_impossible" in entry and inside(entry, place, "is_impossible", bool)):
                    questions.append(Question(name, asked, len(contexts), [], [], str(path)))
                    continue
                answers = [
                    (inside(x, f"{place}.answers[{i}]", "text", str), inside(x, f"{place}.answers[{i}]", "answer_start", int))
                    for i, x in enumerate(inside(entry, place, "answers", list))
                ]
                if not answers:
                    raise UserError(f"{path}: {place}.answers is empty; expected an answer, or is_impossible")
                if all(answer.strip() and start >= 0 and context.startswith(answer, start) for answer, start in answers):
                    right = list(dict.fromkeys(answer for answer, _ in answers))
                    places = list(dict.fromkeys((start, start + len(answer)) for answer, start in answers))
                    questions.append(Question(name, asked, len(contexts), right, places, str(path)))
                else:
                    wrong.append(printable(name))
            contexts.append(context)
    if wrong:
        listed = ", ".join(wrong[:LISTED]) + (f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else "")
        what = (
            f"{path}: {len(wrong):,} of {total:,} questions have an answer that the context has not at its answer_start: {listed}"
        )
        if len(wrong) > most * total:
            raise UserError(f"{what}; mend them, or raise downstream.max_mismatched={most:g}")
        notes.append(f"{what}; they are left out")
    if not questions:
        raise UserError(f"{path}: holds no questions; expected SQuAD's JSON")
    return questions


def split_of(
    contexts: list[str], questions: list[Question], nothing: bool, scoring: str, options: Any, tokenizer: Any, length: int
) -> Questions:
    passages = spans.encoded(tokenizer, contexts)
    bounds, windows, targets = [0], list[Window](), []
    for question, asked in zip(questions, tokenizer.encode([q.text for q in questions]), strict=True):
        passage = passages[question.context]
        own = windows_of(asked, passage.ids, options.stride, tokenizer, length)
        answers = [tokens_of(passage.spans, *place) for place in question.places]
        chosen = max(range(len(own)), key=lambda i: shown(own[i], *answers[0])) if answers else 0
        targets.append([bounds[-1] + chosen, *(marks(own[chosen], answers) if answers else [len(own[0].ids) - 1] * 2)])
        windows += own
        bounds.append(len(windows))
    most = max(map(len, targets))
    return Questions(
        [w.ids for w in windows],
        [w.types for w in windows],
        [q.text for q in questions],
        tokenizer.vocabulary.pad,
        torch.arange(len(questions)),
        None,
        names=[f"{q.file}: {q.name}" for q in questions if q.file] or None,
        questions=questions,
        contexts=contexts,
        spans=[p.spans for p in passages],
        windows=windows,
        bounds=np.array(bounds),
        targets=np.array([target + [-1] * (most - len(target)) for target in targets]),
        nothing=nothing,
        longest=options.answer_length,
        scoring=scoring,
    )


def windows_of(question: np.ndarray, context: np.ndarray, stride: int, tokenizer: Any, length: int) -> list[Window]:
    """A question with pieces of its context that begin `stride` tokens apart, or fewer where else some would not be seen. The
    question is cut to half of the room for both."""
    nobody = np.zeros(0, dtype=np.int64)
    room = length - len(tokenizer.frame(nobody, nobody, length)[0])
    question = question[: room // 2]
    room -= len(question)
    windows, first = [], 0
    while True:
        piece = context[first : first + room]
        frame = spans.framed(tokenizer, question, piece, length)
        place = int(frame.places[0]) if len(piece) else 0
        windows.append(Window(frame.ids, frame.types, place, first, len(piece)))
        if first + room >= len(context):
            return windows
        first += min(stride, room)


def tokens_of(spans: np.ndarray, start: int, stop: int) -> tuple[int, int]:
    """The first and the last token of some characters of a context."""
    touched = np.nonzero((spans[:, 0] < stop) & (spans[:, 1] > start))[0]
    return (int(touched[0]), int(touched[-1])) if len(touched) else (0, 0)


def marks(window: Window, answers: list[tuple[int, int]]) -> list[int]:
    """First and last token in a window, one pair after the other, of the first answer, cut where it is longer, and of those
    others that it shows whole."""
    stop = window.first + max(window.size, 1)
    whole = [answer for answer in answers[1:] if window.first <= answer[0] and answer[1] < stop]
    pairs = [np.clip(answers[0], window.first, stop - 1).tolist(), *whole]
    return [int(token) - window.first + window.place for pair in pairs for token in pair]


def shown(window: Window, first: int, last: int) -> tuple[int, int]:
    """How well a window shows the tokens of an answer: how many, and how many around them on the side with fewer."""
    before, after = first - window.first, window.first + window.size - 1 - last
    return min(last, window.first + window.size - 1) - max(first, window.first), min(before, after)
