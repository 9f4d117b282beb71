"""Extractive question answering (SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250; questions without an answer: 2018,
arXiv:1806.03822): of each token, whether the answer starts and whether it ends there.

A context that is too long for the model is read in windows that overlap (Devlin et al. 2019). A sample is a question: it is
trained on with the window that shows its answer best, and answered by the best span of all its windows. Where splits or folds are
made here, all questions about one context are in one of them.
"""

import functools
import hashlib
import itertools
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ptmrun.batch import Tokens
from ptmrun.data.sources.text import ends
from ptmrun.data.text import spans as spans_of
from ptmrun.data.text.load import TextSplit, padded
from ptmrun.downstream.token_head import Tokenwise
from ptmrun.downstream.token_head import few as few
from ptmrun.errors import UserError, printable
from ptmrun.loss import Loss
from ptmrun.models.modes import evaluating

METRIC = "f1"  # of the words of an answer, the mean over questions


COUNTED = "labelled questions"  # what `labels_per_class` counts, in all


FLOORS = ("chance", "raw")


WORDS = {
    "chance": "always the most frequent answer",
    "raw": "a name in the sentence that shares most words with the question",
}


SUFFIXES = (".json",)


LISTED = 10  # in a message


WORD = re.compile(r"\w[\w’'-]*")


ARTICLES = re.compile(r"\b(a|an|the)\b")


class Question(NamedTuple):
    name: str
    text: str
    context: int  # number of its context
    answers: list[str]  # all that count as right; empty where there is none
    places: list[tuple[int, int]]  # of each: its first character in the context, and the one after its last


class Window(NamedTuple):
    """A question, and of its context the tokens [first, first + size)."""

    ids: np.ndarray
    types: np.ndarray
    place: int  # of the first of these tokens among `ids`
    first: int
    size: int


@dataclass(kw_only=True)
class Questions(TextSplit):
    """Questions of one split; `ids` and `types` are those of the windows.

    Of all of the source: questions, contexts, and the characters that tokens of these stand for (`spans`, each [tokens, 2]);
    windows, those of question q from bounds[q] to bounds[q + 1]; targets [questions, 1 + 2 K]: the window that each is trained
    on, and where in it the first and the last token of its answers stand, -1 where there are fewer. nothing: whether some
    training questions have no answer; then the last token of a window is start and end of none (it has read both texts in causal
    models too). longest: tokens of an answer.
    """

    questions: list[Question]
    contexts: list[str]
    spans: list[np.ndarray]
    windows: list[Window]
    bounds: np.ndarray
    targets: np.ndarray
    nothing: bool
    longest: int
    answered = True

    @property
    def lengths(self) -> Tensor:
        """Tokens of the window that each question is trained on, [N]."""
        return torch.tensor([len(self.ids[w]) for w in self.targets[self.rows.numpy(), 0]])

    def by_length(self) -> tuple[Self, slice]:
        """Windows stay in order, those of a question together."""
        return self, slice(None)

    def own(self) -> list[range]:
        """The numbers of each question's windows."""
        return [range(self.bounds[r], self.bounds[r + 1]) for r in self.rows.tolist()]

    def asked(self) -> list[Question]:
        return [self.questions[r] for r in self.rows.tolist()]

    @property
    def together(self) -> Tensor:
        """A number for the context of each question, [N]; where a file repeats a context it is the same."""
        number = {context: i for i, context in enumerate(self.contexts)}
        return torch.tensor([number[self.contexts[q.context]] for q in self.asked()])

    def documents(self) -> list[str]:
        """The questions, and the contexts of each."""
        return [*self.read(), *(self.contexts[q.context] for q in self.asked())]

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tokens]:
        """For training: one window a question."""
        return (self.batch(self.targets[self.rows[indices].numpy(), 0]) for indices in index_lists)

    def answers(self, indices: Tensor) -> Tensor:
        """First and last token of the answers in these windows, [B, K, 2]; -1 where there are fewer."""
        return torch.from_numpy(self.targets[self.rows[indices].numpy(), 1:]).unflatten(1, (-1, 2))

    def all(self, size: int = 64) -> Iterator[Tokens]:
        """All windows of all questions, in order."""
        numbers = [w for own in self.own() for w in own]
        return (self.batch(numbers[i : i + size]) for i in range(0, len(numbers), size))

    def batch(self, numbers: Iterable[int]) -> Tokens:
        chosen = [self.windows[w] for w in numbers]
        return padded([w.ids for w in chosen], [w.types for w in chosen], self.pad)


class Reader(Tokenwise):
    def __init__(self, encoder: Any):
        super().__init__(encoder, 2)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, T], labels [B, K, 2]. The mean of the cross-entropies of start and end over a window's tokens; all
        that start, or end, an answer are right together (sum objective: Clark & Gardner 2018, arXiv:1710.10723, section 3.2)."""
        tokens, labels = batch["inputs"], batch["labels"]
        logits = torch.full((*tokens.ids.shape, 2), -torch.inf, device=tokens.ids.device)
        logits[tokens.mask] = self.logits(tokens, tokens.mask)
        place = torch.arange(logits.shape[1], device=logits.device)[:, None]
        right = (labels[:, :, None] == place).any(1)
        loss = (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).sum() / 2
        both = right.gather(1, logits.argmax(1, keepdim=True)).all(2).sum()
        return Loss(loss, len(labels)), {"both_right": Loss(both, len(labels))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: the mean of ln(tokens)."""
        return float(batch["inputs"].mask.sum(1).log().mean())

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """How much each token is the start and the end, one window after the other without padding: [tokens, 2] on the CPU."""
        with evaluating(self):
            return {"logits": torch.cat([self.logits(tokens, tokens.mask).cpu() for tokens in batches])}


def build(encoder: Any, data: Any, options: Any) -> Reader:
    return Reader(encoder)


def sets(options: Any, tokenizer: Any, length: int, notes: list[str]) -> tuple[dict[str, Questions], list[str], str]:
    """(splits, no classes, fingerprint) of the JSON files below downstream.root. Raises UserError where they cannot be used."""
    digest = hashlib.sha256(f"{options.stride} {options.answer_length} {options.max_mismatched}".encode())
    read: dict[str, tuple[list[str], list[Question]]] = {}
    for name, paths in spans_of.files(options.root, SUFFIXES).items():
        contexts: list[str] = []
        questions: list[Question] = []
        for path in paths:
            text = spans_of.read(path, options)
            digest.update(f"{name} {len(text)}\n{text}".encode())
            questions += parsed(path, text, options.max_mismatched, contexts, notes)
        read[name] = contexts, questions
    nothing = not all(q.answers for q in read["train"][1])
    splits = {
        name: split_of(contexts, questions, nothing, options, tokenizer, length) for name, (contexts, questions) in read.items()
    }
    for name, split in splits.items():
        several = int((np.diff(split.bounds) > 1).sum())
        if several:
            notes.append(
                f"{name}: the contexts of {several:,} of {len(split):,} questions are read in several windows, "
                f"{len(split.windows):,} in all (model.length={length})"
            )
    return splits, [], digest.hexdigest()


def parsed(path: Path, text: str, most: float, contexts: list[str], notes: list[str]) -> list[Question]:
    """The questions of a SQuAD file whose answers stand where it says; their contexts are added to `contexts`.

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
    found, wrong, total = [], [], 0

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
                if "is_impossible" in entry and inside(entry, place, "is_impossible", bool):
                    found.append(Question(name, asked, len(contexts), [], []))
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
                    found.append(Question(name, asked, len(contexts), right, places))
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
    if not found:
        raise UserError(f"{path}: holds no questions; expected SQuAD's JSON")
    return found


def split_of(
    contexts: list[str], questions: list[Question], nothing: bool, options: Any, tokenizer: Any, length: int
) -> Questions:
    passages = spans_of.encoded(tokenizer, contexts)
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
        questions=questions,
        contexts=contexts,
        spans=[p.spans for p in passages],
        windows=windows,
        bounds=np.array(bounds),
        targets=np.array([target + [-1] * (most - len(target)) for target in targets]),
        nothing=nothing,
        longest=options.answer_length,
    )


def windows_of(question: np.ndarray, context: np.ndarray, stride: int, tokenizer: Any, length: int) -> list[Window]:
    """A question with pieces of its context that begin `stride` tokens apart, or fewer where else some would not be seen. The
    question is cut to half of the room for both."""
    nobody = np.zeros(0, dtype=np.int64)
    room = length - len(tokenizer.frame(nobody, nobody, length)[0])
    question = question[: room // 2]
    room -= len(question)
    found, first = [], 0
    while True:
        piece = context[first : first + room]
        frame = spans_of.framed(tokenizer, question, piece, length)
        place = int(frame.places[0]) if len(piece) else 0
        found.append(Window(frame.ids, frame.types, place, first, len(piece)))
        if first + room >= len(context):
            return found
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


def fits(found: dict[str, Tensor], split: Questions, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    logits = found.get("logits", torch.empty(0))
    return logits.is_floating_point() and logits.shape == (sum(len(split.ids[w]) for own in split.own() for w in own), 2)


def guesses(found: dict[str, Tensor], split: Questions) -> list[str]:
    """The answer to each question; nothing where the split may have such questions and that is likelier."""
    if "spans" in found:  # of a floor
        pairs = zip(split.asked(), found["spans"].tolist(), strict=True)
        return [split.contexts[question.context][a:b] for question, (a, b) in pairs]
    answers = []
    for question, empty, windows in judged(found, split):
        best, answer = -np.inf, (0, 0)
        for logits, written in windows:
            value, first, last = best_span(logits, written, split.longest)
            if value > best:
                best, answer = value, (int(written[first, 0]), int(written[last, 1]))
        nothing = split.nothing and empty > best
        answers.append("" if nothing else split.contexts[question.context][slice(*answer)])
    return answers


def judged(found: dict[str, Tensor], split: Questions) -> Iterator[tuple[Question, float, list[tuple[np.ndarray, np.ndarray]]]]:
    """Each question, the score of no answer, and of the context's tokens in each of its windows what the model says and which
    characters they stand for, [n, 2] each. In float64, where sums of any two float32 are finite."""
    logits, place = found["logits"].double().numpy(), 0
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


def normalised(answer: str) -> str:
    """As SQuAD's evaluation script does: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def word_f1(guess: str, right: str) -> float:
    """Of the words that both have, as often as they have them (SQuAD's evaluation script 1.1)."""
    a, b = normalised(guess).split(), normalised(right).split()
    same = sum((Counter(a) & Counter(b)).values())
    return 2 * same / (len(a) + len(b)) if same else 0.0


def f1_of(guess: str, answers: list[str]) -> float:
    """By the nearest of the right answers; of a question that has none, whether nothing was answered (script 2.0)."""
    return max(word_f1(guess, right) for right in answers) if answers else exact_of(guess, answers)


def exact_of(guess: str, answers: list[str]) -> float:
    return float(any(normalised(guess) == normalised(right) for right in answers or [""]))


def each(found: dict[str, Tensor], split: Questions) -> np.ndarray:
    """The F1 of each answer, [N]."""
    pairs = zip(guesses(found, split), split.asked(), strict=True)
    return np.array([f1_of(guess, question.answers) for guess, question in pairs])


def score(found: dict[str, Tensor], split: Questions) -> float:
    return float(each(found, split).mean())


def floor(kind: str, data: Any, train: Questions, features: Callable[[str, Any], np.ndarray]) -> dict[str, Tensor]:
    """What is answered without reading, as characters of the context [N, 2]: chance, the most frequent answer of the training
    questions where the context has it, else its first capitalised words; raw, of the sentence that shares most different words
    with the question the first capitalised words that the question has not (and if there are others, not its first word)."""
    counts = Counter(question.answers[0] for question in data.train.asked() if question.answers)
    most = max(counts, key=lambda answer: (counts[answer], answer), default="")
    found = []
    for question in data.test.asked():
        context = data.test.contexts[question.context]
        if kind == "raw":
            found.append(lexical(question.text, context))
            continue
        place = context.find(most)
        found.append((place, place + len(most)) if place >= 0 else next(iter(capitalised(context)), (0, 0)))
    return {"spans": torch.tensor(found)}


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


def lexical(question: str, context: str) -> tuple[int, int]:
    """The `raw` baseline's answer; see `floor`."""
    asked = {word.lower() for word in WORD.findall(question)}
    cuts = [0, *ends(context), len(context)]
    a, b = max(itertools.pairwise(cuts), key=lambda s: len(asked & {word.lower() for word in WORD.findall(context[s[0] : s[1]])}))
    runs = capitalised(context[a:b], a)

    def rank(run: tuple[int, int]) -> tuple[bool, bool]:
        words = {word.lower() for word in WORD.findall(context[run[0] : run[1]])}
        return bool(words & asked), not context[a : run[0]].strip()

    return min(runs, key=rank, default=(0, 0))


def n_best(found: dict[str, Tensor], split: Questions, most: int) -> dict[str, list[dict[str, Any]]]:
    """{id of a question: its likeliest different answers, at most `most`, the best first, which is the prediction}.

    score: start + end; probability: softmax of the scores listed, as in nbest_predictions.json of BERT's run_squad. Where the
    split may have questions without an answer, "" is one.
    """
    result: dict[str, list[dict[str, Any]]] = {}
    seen: Counter[str] = Counter()  # ids may be those of several questions
    for question, empty, windows in judged(found, split):
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


def files(found: dict[str, Tensor], split: Questions, options: Any) -> dict[str, Any]:
    """What a run keeps of its predictions beside predictions.parquet: {name of a JSON file: content}."""
    return {"n_best.json": n_best(found, split, options.n_best)}


def columns(found: dict[str, Tensor], split: Questions, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the question's id, its first answer and the predicted one, and whether that is right exactly."""
    asked, answers = split.asked(), guesses(found, split)
    exact = [exact_of(guess, question.answers) for guess, question in zip(answers, asked, strict=True)]
    return {
        "id": pa.array([question.name for question in asked], pa.string()),
        "label": pa.array([next(iter(question.answers), "") for question in asked], pa.string()),
        "prediction": pa.array(answers, pa.string()),
        "exact_match": pa.array(exact),
    }


def metrics(found: dict[str, Tensor], split: Questions, classes: list[str], bins: int) -> dict[str, Any]:
    """F1 and exact match (SQuAD's evaluation script); where some questions have no answer, also of these and of the others."""
    pairs = list(zip(guesses(found, split), split.asked(), strict=True))
    f1 = np.array([f1_of(guess, question.answers) for guess, question in pairs])
    exact = np.array([exact_of(guess, question.answers) for guess, question in pairs])
    there = np.array([bool(question.answers) for _, question in pairs])

    def of(chosen: np.ndarray) -> dict[str, Any]:
        return {"f1": float(f1[chosen].mean()), "exact_match": float(exact[chosen].mean())}

    result = of(np.ones(len(there), dtype=bool))
    if there.all():
        return result
    kinds = {"answered": there, "unanswered": ~there}
    return result | {name: {**of(chosen), "n": int(chosen.sum())} for name, chosen in kinds.items() if chosen.any()}
