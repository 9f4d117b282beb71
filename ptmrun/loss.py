"""How objectives and the loop speak of a loss."""

from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A sum over `n` items (patches, tokens, images), so that micro-batches add up to the whole batch's mean."""

    total: Tensor
    n: Tensor | int
