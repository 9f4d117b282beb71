"""The mode of a network: in evaluation nothing is dropped out, and batch normalisation has the statistics that it has."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """All of it in evaluation; afterwards each of its modules as it was before."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def has_dropout(module: nn.Module) -> bool:
    """Whether a module leaves units out in training: a dropout layer, or one with a rate of its own, as BART's and an LSTM."""
    rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
    return isinstance(rate, float) and rate > 0
