"""torchvision's losses of detectors as sums, so that micro-batches add up to the whole batch's mean."""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from ptmrun.batch import NO_BOX, Boxes
from ptmrun.downstream.detection.pyramid import GROUPS

NOTHING = -50.0  # a logit that adds nothing to the focal loss of a place where nothing is
Targets = list[dict[str, Tensor]]


def targets_of(labels: Boxes) -> Targets:
    """As torchvision has them, an image each; and the boxes that are ignored."""
    made = []
    for corners, classes, ignored in zip(*labels, strict=True):
        chosen = (classes != NO_BOX) & ~ignored
        made.append({"boxes": corners[chosen], "labels": classes[chosen], "ignored": corners[(classes != NO_BOX) & ignored]})
    return made


def inside_ignored(places: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Which places [L, 4] have their centres in an ignored box, [L] bool."""
    centres = (places[:, None, :2] + places[:, None, 2:]) / 2
    return ((centres > target["ignored"][:, :2]) & (centres < target["ignored"][:, 2:])).all(2).any(1)


def without_ignored(
    targets: Targets, outputs: dict[str, Tensor], anchors: list[Tensor], matched: list[Tensor]
) -> dict[str, Tensor]:
    """Outputs whose class logits say nothing at places that lie in an ignored box and have none of their own."""
    if not any(len(target["ignored"]) for target in targets):
        return outputs
    hidden = []
    for target, places, own in zip(targets, anchors, matched, strict=True):
        hidden.append(inside_ignored(places, target) & (own < 0))
    return {**outputs, "cls_logits": outputs["cls_logits"].masked_fill(torch.stack(hidden)[..., None], NOTHING)}


class Dense(FCOSHead):
    """FCOS's head. `counted` is by how many places the sums of `compute_loss` are to be divided."""

    counted = 0

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        self.counted = int(sum(int((own >= 0).sum()) for own in matched_idxs))
        outputs = without_ignored(targets, head_outputs, anchors, matched_idxs)
        losses = super().compute_loss(targets, outputs, anchors, matched_idxs)
        return {name: loss * max(1, self.counted) for name, loss in losses.items()}  # which are divided by it there


class Anchored(RetinaNetHead):
    """RetinaNet's head, whose loss is a mean over images."""

    counted = 0

    def __init__(self, channels: int, anchors: int, classes: int):
        super().__init__(channels, anchors, classes, norm_layer=partial(nn.GroupNorm, GROUPS))

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        self.counted = len(targets)
        outputs = without_ignored(targets, head_outputs, anchors, matched_idxs)
        losses = super().compute_loss(targets, outputs, anchors, matched_idxs)
        return {name: loss * len(targets) for name, loss in losses.items()}
