"""Batch normalisation's statistics of a network as it is now, not as it was on the way (Wu & Johnson 2021, arXiv:2105.07576,
section 3): running averages lag behind a short training, and were taken of augmented or masked images."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ptmrun.models.modes import eval_mode

SEEN = 512  # samples are enough for means and variances


def freeze_statistics(encoder: Any) -> None:
    """From here on its batch normalisation works with the statistics that it has, in training too: those of millions of images
    say more than those of a few labelled ones."""
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.kept = True  # type: ignore[assignment]


def has_frozen_statistics(module: nn.Module) -> bool:
    return getattr(module, "kept", False)


@torch.no_grad()
def recompute_statistics(encoder: Any, batches: Iterable[Tensor]) -> None:
    """Replaces the statistics of all layers that are trained, or not yet, by those over these inputs; none is left half-way:
    layers that `features` does not use keep theirs. Without such layers nothing is computed."""
    layers = [
        m
        for m in encoder.modules()
        if isinstance(m, _BatchNorm)
        and m.track_running_stats
        and any(p.requires_grad for p in m.parameters())
        and not has_frozen_statistics(m)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    with eval_mode(encoder):
        for layer in layers:
            layer.train()
            layer.momentum = None  # the plain average, from the first batch on
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.zero_()
        for inputs in batches:
            if len(inputs) > 1:  # one image may be a single value a channel, which has no variance
                encoder.features(inputs)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
