"""A transformer block of transformers' ViT or ViT-MAE, for fewer tokens than it sees."""

from typing import Any

from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit.modeling_vit import eager_attention_forward


def tail(layer: Any, hidden: Tensor, count: int) -> Tensor:
    """layer(hidden)[:, -count:] without the work for the others: [B, N, D] -> [B, count, D]. They still give keys and values."""
    attention = layer.attention
    seen = layer.layernorm_before(hidden)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    mix = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    mixed, _ = mix(
        attention,
        heads(attention.q_proj(seen[:, -count:])),
        heads(attention.k_proj(seen)),
        heads(attention.v_proj(seen)),
        None,
        dropout=attention.attention_dropout if layer.training else 0.0,
        scaling=attention.scaling,
    )
    hidden = hidden[:, -count:] + layer.dropout(attention.o_proj(mixed.flatten(2)))
    return hidden + layer.dropout(layer.mlp(layer.layernorm_after(hidden)))
