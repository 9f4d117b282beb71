"""How objectives, fine-tuned models and the loop speak of a loss."""

import abc
import math
from typing import Any, NamedTuple

from torch import Tensor, nn


class Loss(NamedTuple):
    """A sum over `n` items (patches, tokens, images), so that micro-batches add up to the whole batch's mean."""

    total: Tensor
    n: Tensor | int


class Learner(nn.Module, abc.ABC):
    """What the loop trains: an encoder with a head or heads."""

    encoder: Any
    views: Any = None  # of each image, that its batches hold (data/images/views.py)
    alphas: tuple[float, float] = (0.0, 0.0)  # of MixUp and CutMix, by which its batches are mixed
    pairs = False  # its batches hold pairs of texts
    compares = False  # its loss compares all samples of a batch: `compare(embed(batch), [batch])`
    later: tuple[str, ...] = ()  # parameters whose names begin so are not trained in the first steps
    initial_within = 1.25  # times `initial_loss`, that its first loss may be

    @abc.abstractmethod
    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """The loss, and by name what else is averaged and logged."""

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """Of a micro-batch, what `compare` compares, [b, ...]."""
        raise TypeError(f"{type(self).__name__} compares no samples")

    def compare(self, embedded: Tensor, micros: list[dict[str, Any]]) -> tuple[Loss, dict[str, Loss]]:
        """As `forward`, of the whole batch, whose micro-batches these are."""
        raise TypeError(f"{type(self).__name__} compares no samples")

    def count(self, micros: list[dict[str, Any]]) -> None:
        """Called before the first of several micro-batches, for a loss that is normalised by several numbers of the batch, which
        `add_up` makes of those of these micro-batches."""

    def add_up(self, values: list[float]) -> list[float]:
        """Their sums over all processes that train this; the loop replaces it where there are several."""
        return values

    def after_step(self, done: int, steps: int) -> None:
        """Called after each optimizer step, `done` of `steps`."""

    def begin_at(self, progress: float) -> None:
        """Called on a model that is thrown away, to be as at this share of the steps, where they differ in what they compute."""

    def initial_loss(self, batch: dict[str, Any]) -> float | None:
        """The loss of a uniform prediction (the mean, equal probabilities), where it is known."""
        return None

    def lowest_loss(self, batch: dict[str, Any]) -> float | None:
        """The lowest loss there is, where it is known and not 0."""
        return None


def smoothed_entropy(smoothing: float, classes: int) -> float:
    """The entropy of a smoothed label in nats, below which no mean cross-entropy is."""
    off = smoothing / classes
    others = (classes - 1) * off
    return -(1 - others) * math.log(1 - others) - (others * math.log(off) if off else 0.0)
