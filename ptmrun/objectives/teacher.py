"""Teachers that follow their student as a moving average, and the heads that both have."""

import copy
import itertools
import math

import torch
from torch import nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient trains."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def momentum_at(base: float, progress: float) -> float:
    """From `base` to 1 along a cosine (Grill et al. 2020, section 3.3); progress from 0 to 1."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def mlp(*widths: int, norm: bool) -> nn.Sequential:
    """Linear layers with ReLU, and batch normalisation before it, between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
