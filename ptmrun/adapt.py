"""Fine-tuning methods: which weights of a classifier are trained."""

import difflib
import fnmatch
from typing import Any

from torch import nn

from ptmrun import hyperrule
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


METHODS = {"full": full, "linear": linear, "top": top, "bit_hyperrule": full}
RULES = {"bit_hyperrule": hyperrule.decide}  # methods that settle what is auto by the data


def adapt(classifier: Any, options: Any) -> tuple[int, int]:
    """Freezes what the method `options.name` does not train, then what `freeze` names, and frees what `unfreeze` names; returns
    (trainable, all) parameters. Raises UserError for a pattern that matches nothing, and when nothing is left to train."""
    METHODS[options.name](classifier, options)
    for key, trained in (("freeze", False), ("unfreeze", True)):
        for pattern in getattr(options, key) or []:
            for parameter in matching(classifier, pattern, f"finetune.{key}"):
                parameter.requires_grad_(trained)
    trainable = parameters(classifier, trainable=True)
    if not trainable:
        raise UserError("finetune.freeze: leaves nothing to train")
    return trainable, parameters(classifier)


def matching(module: nn.Module, pattern: str, key: str) -> list[nn.Parameter]:
    """The parameters whose names a glob pattern matches; at least one."""
    named = dict(module.named_parameters())
    found = [p for name, p in named.items() if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        near = ", ".join(difflib.get_close_matches(pattern, named, n=3, cutoff=0))
        raise UserError(f"{key}={pattern}: matches no parameter; the nearest are: {near}")
    return found


def parameters(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
