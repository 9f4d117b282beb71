"""Blocks whose activations are not kept for the backward pass, which computes them again (Chen et al. 2016, arXiv:1604.06174):
the same numbers for a fraction of the memory, and for the time of one more forward pass."""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(network: nn.Module) -> list[Any]:
    """Those of transformers, each before the ones inside it."""
    from transformers.modeling_layers import GradientCheckpointingLayer  # which takes long, where a network needs none of it

    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def recompute(network: nn.Module, wanted: bool = True) -> int:
    """From here on its blocks do so, or not; how many there are."""
    every = blocks(network)
    for block in every:
        block.gradient_checkpointing = wanted
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return len(every)
