"""How many samples each class has, and what that means for those that have few."""

import torch
from torch import Tensor

UNEVEN = 3  # times the samples of the smallest class, from which the largest is worth a note


def counts(labels: Tensor, classes: int) -> Tensor:
    """Samples of each class, [classes]; labels [N], or 0 and 1 [N, classes] where a sample may have several."""
    return torch.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.long().sum(0)


def imbalance(labels: Tensor, names: list[str]) -> list[str]:
    """A note where the largest class has more than UNEVEN times the samples of the smallest."""
    number = counts(labels, len(names)).tolist()
    least, most = number.index(min(number)), number.index(max(number))
    if number[most] <= UNEVEN * number[least]:
        return []
    line = f"unbalanced: {number[most]:,} training samples of class {names[most]}, {number[least]:,} of {names[least]}"
    return [f"{line} (finetune.class_weights=balanced makes each class weigh the same)"]
