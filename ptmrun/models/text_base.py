"""What models of token sequences share: one vector of a whole text, sampling, and positions cut to length."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptmrun.batch import Tokens
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
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def seen(tokens: Tokens) -> Tensor:
    """Which tokens each token sees, [B, T, T] bool: no padding, of documents apart its own; itself in any case."""
    there = tokens.mask[:, None].expand(-1, tokens.ids.shape[1], -1)
    if tokens.documents is not None:
        there = there & (tokens.documents[:, :, None] == tokens.documents[:, None])
    return there | torch.eye(tokens.ids.shape[1], dtype=torch.bool, device=there.device)


def attention_mask(tokens: Tokens) -> Tensor:
    """For transformers' models: [B, T], or of documents apart as `bias`."""
    return tokens.mask if tokens.documents is None else bias(seen(tokens))


def bias(seen: Tensor) -> Tensor:
    """What is added to attention scores, -inf where nothing is seen: [B, T, S] bool -> float32 [B, 1, T, S]."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]


@torch.no_grad()
def attention(net: Any, body: Any, ids: Tensor, mask: Tensor | None, **extra: Any) -> Tensor:
    """How much each token looks at each, [B, T, T]: the mean over the heads of the last block of `body`, a part of `net`."""
    used = net.config._attn_implementation
    net.set_attn_implementation("eager")
    blocks = body(ids, attention_mask=mask, output_attentions=True, **extra).attentions
    net.set_attn_implementation(used)
    return blocks[-1].float().mean(1)


def sample(logits: Tensor, noise: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """Token numbers from uniform noise in [0, 1): [B, V], [B] -> [B] int64.

    From the `top_k` likeliest (1 or more; None: all), and of these from as few as reach the probability `top_p` together, at
    least the likeliest (nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751). A temperature of 0 takes the likeliest, which
    is what lower and lower ones come to. Likely tokens come first, so that each is where the cumulative probability passes the
    noise.
    """
    values, order = logits.float().sort(dim=-1, descending=True, stable=True)
    if temperature == 0:
        return order[:, 0]
    chances = ((values - values[:, :1]) / temperature)[:, :top_k].softmax(-1)
    kept = chances.cumsum(-1) - chances < top_p
    kept[:, 0] = True
    below = (chances * kept).cumsum(-1)
    place = (below <= noise[:, None] * below[:, -1:]).sum(-1, keepdim=True)  # float32 noise times x is below x
    return order.gather(1, place).squeeze(1)


def fits(length: int, wanted: int) -> None:
    """Raises UserError when a text is to become longer than positions were learned."""
    if wanted > length:
        raise UserError(f"model.length={length}: {wanted} tokens were asked for; give a shorter text or generate fewer")


def cut(tensors: dict[str, Tensor], suffix: str, length: int) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a model for longer texts as one for `length` tokens takes them: the first positions. And notes on it."""
    found = {k: v[:length] for k, v in tensors.items() if k.endswith(suffix) and len(v) > length}
    return {**tensors, **found}, [f"positions: the first {length} of {len(tensors[k])}" for k in found]


def reworded(net: Any, size: int, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights from outside as a network of `size` tokens takes them, where both know the same ones but for a few: a token that
    the family adds, for padding or hiding, begins as the mean of all (Hewitt 2021, "Initializing new word embeddings"); rows
    beyond the tokenizer's, which fill up a round number, are left out. And notes on it."""
    found = {}
    for name, ours in net.state_dict().items():
        for key, value in tensors.items():
            if size in ours.shape and value.ndim == ours.ndim and (name.endswith(key) or key.endswith(name)):
                axis = ours.shape.index(size)
                rows, rest = value.shape[axis], ours.shape[:axis] + ours.shape[axis + 1 :]
                if -FILLED <= size - rows <= ADDED and size != rows and rest == value.shape[:axis] + value.shape[axis + 1 :]:
                    mean = value.mean(axis, keepdim=True).expand_as(value).narrow(axis, 0, max(0, size - rows))
                    found[key] = torch.cat([value, mean], axis).narrow(axis, 0, size)
    notes = [
        f"{key}: {tuple(tensors[key].shape)} to {tuple(value.shape)}, as the tokenizer has {size} tokens"
        for key, value in found.items()
    ]
    return {**tensors, **found}, notes
