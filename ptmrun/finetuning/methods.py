"""Fine-tuning methods: which weights of a classifier are trained."""

import difflib
import fnmatch
import importlib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ptmrun.errors import UserError
from ptmrun.finetuning import bit_hyperrule


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


def bitfit(classifier: Any, options: Any) -> None:
    """The head and every bias (BitFit: Ben Zaken et al. 2022, arXiv:2106.10199)."""
    for name, parameter in classifier.encoder.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


METHODS = {
    "full": full,
    "lp_ft": full,
    "layer_decay": full,
    "linear": linear,
    "top": top,
    "bitfit": bitfit,
    "bit_hyperrule": full,
}
ADDED = {  # methods that put new parameters beside frozen ones, and their modules
    "adapter": "adapters",
    "lora": "lora",
    "dora": "lora",
    "adalora": "lora",
    "ia3": "lora",
    "prefix": "prefix",
}
PLACES = {  # of a family, that such a method, or such a placement of adapters, works on; others work on every layer of the blocks
    "ia3": ("values", "feed_forward"),
    "prefix": ("values",),
    "pfeiffer": ("feed_forward",),
    "houlsby": ("attention", "feed_forward"),
}
RULES = {"bit_hyperrule": bit_hyperrule.decide}  # methods that settle what is auto by the data


def adapt(classifier: Any, options: Any, steps: int) -> tuple[int, int]:
    """Freezes what the method `options.name` does not train and adds what it adds, for a fit of so many steps; then freezes what
    `freeze` names, and frees what `unfreeze` names; returns (trainable, all) parameters. Raises UserError for a pattern that
    matches nothing, and when nothing is left to train."""
    if options.name in ADDED:
        add(classifier, options, steps)
    else:
        METHODS[options.name](classifier, options)
    for key, trained in (("freeze", False), ("unfreeze", True)):
        for pattern in getattr(options, key) or []:
            for name in matching(dict(classifier.named_parameters()), pattern, f"finetune.{key}"):
                classifier.get_parameter(name).requires_grad_(trained)
    trainable = parameters(classifier, trainable=True)
    if not trainable:
        raise UserError(f"finetune={options.name}, finetune.freeze: leaves nothing to train")
    return trainable, parameters(classifier)


def add(classifier: Any, options: Any, steps: int) -> None:
    """Puts the method's own parameters beside those of the encoder, which are frozen."""
    method = module_of(options.name)
    encoder = classifier.encoder
    encoder.requires_grad_(False)
    allocation = getattr(method, options.name)(encoder, chosen(encoder, options, method.FITTING), options, steps)
    if allocation is not None:
        classifier.allocation = allocation
        classifier.after_step = lambda done, _: allocation.after_step(encoder.net, done)
        classifier.register_forward_hook(allocation.regularised)


def module_of(name: str) -> Any:
    """Of a method that adds parameters; peft takes seconds to import."""
    return importlib.import_module(f"ptmrun.finetuning.{ADDED[name]}")


def chosen(encoder: Any, options: Any, fitting: tuple[type, ...]) -> list[str]:
    """Names of the modules of encoder.net that the method works on: those that `targets` name, or the usual ones. Raises
    UserError for a pattern that matches none, and a placement that the family does not have."""
    inside = next(name for name, module in encoder.named_modules() if module is encoder.net)
    layers = {name: module for name, module in encoder.net.named_modules() if type(module) in fitting}
    layers = {name: m for name, m in layers.items() if getattr(m, "groups", 1) == 1}
    if options.targets != "auto":
        return sorted({name for pattern in options.targets for name in matching(layers, pattern, "finetune.targets")})
    places = PLACES.get(getattr(options, "placement", options.name))
    if places is None:
        return [n for n in layers if 0 < encoder.depth_of(f"encoder.{inside}.{n}.weight") <= encoder.depth]
    if lacking := [place for place in places if place not in encoder.places]:
        raise UserError(
            f"finetune.placement=houlsby: this model has no layer that ends its {lacking[0]}; choose placement=pfeiffer"
        )
    return [n for n in layers if any(re.fullmatch(encoder.places[place], n) for place in places)]


def matching(named: Mapping[str, Any], pattern: str, key: str) -> list[str]:
    """The names that a glob pattern matches; at least one."""
    names = [name for name in named if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        near = ", ".join(difflib.get_close_matches(pattern, named, n=3, cutoff=0))
        raise UserError(f"{key}={pattern}: matches no name; the nearest are: {near}")
    return names


def parameters(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def trained(module: nn.Module) -> dict[str, Tensor]:
    """What fine-tuning changed: trainable parameters and buffers, but for those that only training needs."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    training_only = ("allocation.", "weights")  # AdaLoRA's budget, the weights of classes
    return {k: v for k, v in module.state_dict().items() if k not in frozen and not k.startswith(training_only)}
