"""What models of token sequences share: sizes, one vector of a whole text, weights adapted to length and vocabulary."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptmrun.errors import UserError

ADDED, FILLED = 8, 127  # tokens that a family may add; rows that may be there for no token


def sized(options: Any, sizes: dict[str, tuple[int, int]]) -> tuple[dict[str, Any], list[str]]:
    """({"size": name}, notes on why) with `model.size=auto` and no shape: the smallest of {name: (width, layers)}."""
    shape = getattr(options, "shape", None)  # an LSTM has no heads
    if shape and (len(shape) != 3 or shape[0] % shape[2]):
        raise UserError(f"model.shape={shape}: expected width, layers and heads, and a width that the heads divide")
    if options.size != "auto" or shape:
        return {}, []
    name, (width, depth) = next(iter(sizes.items()))
    return {"size": name}, [f"model.size={name}: width {width}, {depth} layers, which learns something in minutes on two cores"]


def shape(options: Any, sizes: dict[str, tuple[int, int]]) -> tuple[int, int, int]:
    """Width, layers and heads of resolved options; heads are 64 wide unless `model.shape` says otherwise."""
    if options.shape:
        return tuple(options.shape)
    width, depth = sizes[options.size]
    return width, depth, width // 64


def named(kind: str, options: Any) -> str:
    """What weights of this kind and size are called."""
    return f"{kind}-{'x'.join(map(str, options.shape)) if options.shape else options.size}"


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that are no padding: [B, T, D], [B, T] -> [B, D]."""
    kept = torch.where(mask[..., None], hidden, 0)
    return kept.sum(1) / mask.sum(1, keepdim=True)


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """At the last token that is no padding: [B, T, D], [B, T] -> [B, D]."""
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(1) - 1]


def fits(length: int, wanted: int) -> None:
    """Raises UserError when a text is to become longer than positions were learned."""
    if wanted > length:
        raise UserError(f"model.length={length}: {wanted} tokens were asked for; give a shorter text or generate fewer")


def truncate_positions(tensors: dict[str, Tensor], suffix: str, length: int) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a model for longer texts as one for `length` tokens takes them: the first positions. And notes on it."""
    cut = {k: v[:length] for k, v in tensors.items() if k.endswith(suffix) and len(v) > length}
    return {**tensors, **cut}, [f"positions: the first {length} of {len(tensors[k])}" for k in cut]


def match_vocabulary(net: Any, size: int, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights from outside as a network of `size` tokens takes them, where both know the same ones but for a few: a token that
    the family adds, for padding or hiding, begins as the mean of all (Hewitt 2021, "Initializing new word embeddings"); rows
    beyond the tokenizer's, which fill up a round number, are left out. And notes on it."""
    changed = {}
    for name, ours in net.state_dict().items():
        for key, value in tensors.items():
            if size in ours.shape and value.ndim == ours.ndim and (name.endswith(key) or key.endswith(name)):
                axis = ours.shape.index(size)
                rows, rest = value.shape[axis], ours.shape[:axis] + ours.shape[axis + 1 :]
                if -FILLED <= size - rows <= ADDED and size != rows and rest == value.shape[:axis] + value.shape[axis + 1 :]:
                    mean = value.mean(axis, keepdim=True).expand_as(value).narrow(axis, 0, max(0, size - rows))
                    changed[key] = torch.cat([value, mean], axis).narrow(axis, 0, size)
    notes = [
        f"{key}: {tuple(tensors[key].shape)} to {tuple(value.shape)}, as the tokenizer has {size} tokens"
        for key, value in changed.items()
    ]
    return {**tensors, **changed}, notes
