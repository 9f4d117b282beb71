"""Fine-tuning methods: which weights of a classifier are trained."""

from typing import Any

from torch import nn

from ptmrun.errors import UserError


def full(classifier: Any, options: Any) -> None:
    """All weights."""


def linear(classifier: Any, options: Any) -> None:
    """The head alone."""
    classifier.encoder.requires_grad_(False)


def top(classifier: Any, options: Any) -> None:
    """The head, the last norm and the last `blocks` blocks."""
    encoder = classifier.encoder
    if options.blocks > encoder.depth:
        raise UserError(f"finetune.blocks={options.blocks}: the model has {encoder.depth} blocks")
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(encoder.depth_of(name) > encoder.depth - options.blocks)


METHODS = {"full": full, "linear": linear, "top": top}


def adapt(classifier: Any, options: Any) -> tuple[int, int]:
    """Freezes what the method `options.name` does not train; returns (trainable, all) parameters."""
    METHODS[options.name](classifier, options)
    return parameters(classifier, trainable=True), parameters(classifier)


def parameters(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
