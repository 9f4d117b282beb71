"""Questions of one split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import Tokens
from ptmrun.data.text.split import TextSplit, padded
from ptmrun.storage.content import number

UNANSWERED = "unanswered"  # in the facts of a run: whether some training questions have no answer


class Question(NamedTuple):
    name: str
    text: str
    context: int  # number of its context
    answers: list[str]  # all that count as right; empty where there is none
    places: list[tuple[int, int]]  # of each: its first character in the context, and the one after its last
    file: str  # empty where it stands in none


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
    models too). longest: tokens of an answer. scoring: squad or mlqa, see metrics.py.
    """

    questions: list[Question]
    contexts: list[str]
    spans: list[np.ndarray]
    windows: list[Window]
    bounds: np.ndarray
    targets: np.ndarray
    nothing: bool
    longest: int
    scoring: str
    answered = True

    @property
    def lengths(self) -> Tensor:
        """Tokens of the window that each question is trained on, [N]."""
        return torch.tensor([len(self.ids[w]) for w in self.targets[self.rows.numpy(), 0]])

    def sorted_by_length(self) -> tuple[Self, slice]:
        """Windows stay in order, those of a question together."""
        return self, slice(None)

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {UNANSWERED: True} if self.nothing else {}

    def own(self) -> list[range]:
        """The numbers of each question's windows."""
        return [range(self.bounds[r], self.bounds[r + 1]) for r in self.rows.tolist()]

    def asked(self) -> list[Question]:
        return [self.questions[r] for r in self.rows.tolist()]

    @property
    def group_ids(self) -> Tensor:
        """A number for the context of each question, [N]; where a context is repeated it is the same."""
        return torch.tensor([number(self.contexts[q.context].encode(errors="replace")) for q in self.asked()])

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
