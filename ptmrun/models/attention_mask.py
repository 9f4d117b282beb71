"""Which tokens see which, as transformers' models take it, and how much they look at one another."""

from typing import Any

import torch
from torch import Tensor

from ptmrun.batch import Tokens


def visible(tokens: Tokens) -> Tensor:
    """Which tokens each token sees, [B, T, T] bool: no padding, of documents apart its own; itself in any case."""
    there = tokens.mask[:, None].expand(-1, tokens.ids.shape[1], -1)
    if tokens.documents is not None:
        there = there & (tokens.documents[:, :, None] == tokens.documents[:, None])
    return there | torch.eye(tokens.ids.shape[1], dtype=torch.bool, device=there.device)


def library_mask(tokens: Tokens) -> Tensor:
    """For transformers' models: [B, T], or of documents apart as `bias`."""
    return tokens.mask if tokens.documents is None else bias(visible(tokens))


def bias(seen: Tensor) -> Tensor:
    """What is added to attention scores, -inf where nothing is seen: [B, T, S] bool -> float32 [B, 1, T, S]."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)[:, None]


@torch.no_grad()
def attention_weights(net: Any, body: Any, ids: Tensor, mask: Tensor | None, **extra: Any) -> Tensor:
    """How much each token looks at each, [B, T, T]: the mean over the heads of the last block of `body`, a part of `net`."""
    used = net.config._attn_implementation
    net.set_attn_implementation("eager")
    blocks = body(ids, attention_mask=mask, output_attentions=True, **extra).attentions
    net.set_attn_implementation(used)
    return blocks[-1].float().mean(1)
