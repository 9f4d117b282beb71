"""The mode of a network: in evaluation nothing is dropped out, and batch normalisation has the statistics that it has."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All of it in evaluation; afterwards each of its modules as it was before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
