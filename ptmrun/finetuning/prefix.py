"""Prefix tuning: learned keys and values before those of every attention layer (Li & Liang 2021, arXiv:2101.00190)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.pytorch_utils import Conv1D

from ptmrun.storage import tensor_files

FILE = "prefixes.safetensors"
FITTING = (nn.Linear, Conv1D)
ATTENTION = "ptmrun_prefix"  # what transformers' networks call their attention when there are prefixes


class Prefix(nn.Module):
    """Keys and values [length, width] that every query of an attention layer sees, at no position: 2 * length * width parameters.
    They begin as small noise: unlike other methods, this one changes a network's answers before it is trained."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.key, self.value = (nn.Parameter(torch.randn(length, width) * 0.02) for _ in range(2))


def prefix(encoder: Any, names: list[str], options: Any, steps: int) -> None:
    """One in each attention layer whose keys and values the modules `names` make."""
    widths = {name.rpartition(".")[0]: width(encoder.net.get_submodule(name)) for name in names}
    put(encoder.net, {name: (options.length, each) for name, each in widths.items()})


def width(module: Any) -> int:
    """Of the keys that a module makes; GPT-2's makes queries and values too."""
    return module.nf // 3 if isinstance(module, Conv1D) else module.out_features


def put(net: Any, sizes: dict[str, tuple[int, int]]) -> None:
    """Prefixes of {name of an attention layer: (length, width)}."""
    for name, size in sizes.items():
        module = net.get_submodule(name)
        module.prefix = Prefix(*size).to(next(module.parameters()).device)
    net.set_attn_implementation(ATTENTION)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as transformers' networks call it: [B, h, Q, d], [B, h, T, d] twice and what is added to the scores, [B, 1 or h,
    Q, T] -> ([B, Q, h, d], weights [B, h, Q, length + T])."""
    if hasattr(module, "prefix"):
        parts = (p.unflatten(1, (key.shape[1], -1)).transpose(0, 1) for p in (module.prefix.key, module.prefix.value))
        before = [p.to(key.dtype).expand(len(key), -1, -1, -1) for p in parts]
        key, value = torch.cat([before[0], key], 2), torch.cat([before[1], value], 2)
        mask = None if mask is None else F.pad(mask, (before[0].shape[2], 0))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = scores if mask is None else scores + mask
    weights = F.dropout(scores.float().softmax(-1).to(value.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(ATTENTION, attend)


AttentionMaskInterface.register(ATTENTION, eager_mask)


def save(net: nn.Module, folder: Path) -> None:
    """The prefixes by name."""
    tensor_files.save(folder / FILE, {name: value for name, value in net.state_dict().items() if ".prefix." in name})


def load(net: nn.Module, folder: Path) -> None:
    """Puts on a network what `save` wrote."""
    tensors = tensor_files.load(folder / FILE)[0]
    ends = ".prefix.key"
    put(net, {k.removesuffix(ends): (len(v), v.shape[1]) for k, v in tensors.items() if k.endswith(ends)})
    net.load_state_dict(tensors, strict=False)
