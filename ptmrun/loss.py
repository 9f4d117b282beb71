"""How objectives and the loop speak of a loss."""

import math
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A sum over `n` items (patches, tokens, images), so that micro-batches add up to the whole batch's mean."""

    total: Tensor
    n: Tensor | int


def smoothed_entropy(smoothing: float, classes: int) -> float:
    """The entropy of a smoothed label in nats, below which no mean cross-entropy is."""
    off = smoothing / classes
    others = (classes - 1) * off
    return -(1 - others) * math.log(1 - others) - (others * math.log(off) if off else 0.0)
