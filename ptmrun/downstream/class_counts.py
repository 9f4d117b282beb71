"""How many samples each class has, and what that means for those that have few."""

import torch
from torch import Tensor

UNEVEN = 3  # times the samples of the smallest class, from which the largest is worth a note


def counts(labels: Tensor, classes: int) -> Tensor:
    """Samples of each class, [classes]; labels [N], or 0 and 1 [N, classes] where a sample may have several."""
    return torch.bincount(labels, minlength=classes) if labels.ndim == 1 else labels.long().sum(0)


def imbalance(labels: Tensor, names: list[str]) -> list[str]:
    """A note where the largest class has more than UNEVEN times the samples of the smallest."""
    found = counts(labels, len(names))
    least, most = int(found.argmin()), int(found.argmax())
    if found[most] <= UNEVEN * found[least]:
        return []
    line = f"unbalanced: {int(found[most]):,} training samples of class {names[most]}, {int(found[least]):,} of {names[least]}"
    return [f"{line} (finetune.class_weights=balanced makes each class weigh the same)"]
