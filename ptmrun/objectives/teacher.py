"""Teachers that follow their student as a moving average, and the heads that both have."""

import copy
import itertools
import math
from typing import Literal

import torch
from torch import nn


def teacher_of(module: nn.Module) -> nn.Module:
    """A copy that no gradient trains."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def momentum_at(base: float | Literal["auto"], done: int, steps: int) -> float:
    """From `base` to 1 along a cosine (Grill et al. 2020, section 3.3). auto: 0.996 as published, and less in short trainings, in
    which so slow a teacher would not get away from its random weights: it remembers a quarter of the steps."""
    first = min(0.996, max(0.0, 1 - 4 / steps)) if base == "auto" else base
    return 1 - (1 - first) * (math.cos(math.pi * done / steps) + 1) / 2


def mlp(*widths: int, norm: bool) -> nn.Sequential:
    """Linear layers with ReLU, and batch normalisation before it, between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=not norm), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
