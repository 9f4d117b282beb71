"""Floating-point operations of training: those of matrix products, convolutions, attention and recurrent layers, a multiply-add
being two. They follow from shapes alone, so that they are a function of config and data and the same on every machine."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ptmrun.training.loop import Inside, gradients

Shape = torch.Size
aten = torch.ops.aten


def attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Twice the forward pass, as of attention that is written out: what a kernel computes again is not counted."""
    return 2 * sdpa_flop_count(query, key, value)


def recurrent(inputs: Shape, from_input: Shape, from_state: Shape, *_: Any, **__: Any) -> int:
    """Of one layer on [T, B, D] by its two weights."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(from_input) + math.prod(from_state))


def recurrent_backward(inputs: Shape, from_input: Shape, from_state: Shape, *_: Any, **__: Any) -> int:
    return 2 * recurrent(inputs, from_input, from_state)


def stacked(inputs: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    """Of several layers on [T, B, D], by the weights and biases of all of them."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


def stacked_backward(inputs: Shape, weights: list[Shape], *_: Any, **__: Any) -> int:
    return 2 * stacked(inputs, weights)


# What torch's counter does not know, or counts differently from one machine to another.
KERNELS = {
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    aten._scaled_dot_product_flash_attention_backward: attention_backward,
    aten._scaled_dot_product_efficient_attention_backward: attention_backward,
    aten._scaled_dot_product_cudnn_attention_backward: attention_backward,
    aten.mkldnn_rnn_layer: recurrent,
    aten.mkldnn_rnn_layer_backward: recurrent_backward,
    aten._cudnn_rnn: stacked,
    aten._cudnn_rnn_backward: stacked_backward,
}


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=KERNELS)


def of_steps(model: Any, steps: Iterable[list[dict[str, Any]]], inside: Inside) -> float:
    """The mean over some steps of training, forward and backward, of a model that is thrown away afterwards: [micro-batches]
    each."""
    counts = []
    for micros in steps:
        with counter() as counted:
            gradients(model, model, micros, inside)
        counts.append(counted.get_total_flops())
    return sum(counts) / len(counts)
