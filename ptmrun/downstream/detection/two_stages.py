"""Faster R-CNN (Ren et al. 2015, arXiv:1506.01497): torchvision's two stages on the small feature pyramid. What a step looks
at is drawn for each image by (seed, step, place in the batch), and the loss is the mean over images of what torchvision gives for
each alone, so that micro-batches add up to the whole batch."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

from ptmrun.downstream.base import Model
from ptmrun.downstream.detection.head import LIMITS, packed, pyramid_on
from ptmrun.downstream.detection.losses import Targets, inside_ignored, targets_of
from ptmrun.downstream.detection.pyramid import STRIDES, Pyramid
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode

PROPOSALS = {"training": 500, "testing": 300}  # of an image; torchvision's 2000 and 1000 are for larger images
ANCHORS, REGIONS = 256, 128  # places of an image, and proposals, that a step looks at
POOLED, WIDTH = 7, 256  # side of what is cut out of the maps for a proposal; width of the two layers on it
CANONICAL = 64  # side of a box that is cut out of the middle level
NUMBERS = 1024  # random ones for the proposals of an image


class Sampler:
    """torchvision's BalancedPositiveNegativeSampler for one image, of which the numbers [n] say which come first. count: how many
    were chosen."""

    def __init__(self, size: int, share: float):
        self.size, self.share, self.count = size, share, 0
        self.numbers = torch.empty(0)

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        [own] = labels
        numbers = self.numbers.to(own.device)[torch.arange(len(own), device=own.device) % len(self.numbers)]
        positive = lowest(numbers, own >= 1, int(self.size * self.share))
        negative = lowest(numbers, own == 0, self.size - int(positive.sum()))
        self.count = int((positive | negative).sum())
        return [positive.byte()], [negative.byte()]


def lowest(numbers: Tensor, among: Tensor, most: int) -> Tensor:
    """Which of those `among`, [n] bool, have the lowest numbers."""
    order = numbers.masked_fill(~among, 2.0).argsort(stable=True)[:most]
    return torch.zeros_like(among).index_fill(0, order, True) & among


class Proposing(RegionProposalNetwork):
    """The first stage; an anchor in an ignored box, that has none of its own, is neither right nor wrong."""

    def assign_targets_to_anchors(self, anchors: list[Tensor], targets: Targets) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        hidden = [inside_ignored(places, target) for places, target in zip(anchors, targets, strict=True)]
        return [own.masked_fill(h & (own == 0), -1.0) for own, h in zip(labels, hidden, strict=True)], boxes


class Regions(RoIHeads):
    """The second stage; ignored boxes as in the first."""

    ignored: Targets  # of the images that are looked at

    def assign_targets_to_proposals(self, proposals: Any, gt_boxes: Any, gt_labels: Any) -> tuple[list[Tensor], list[Tensor]]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        hidden = [inside_ignored(places, target) for places, target in zip(proposals, self.ignored, strict=True)]
        return matched, [own.masked_fill(h & (own == 0), -1) for own, h in zip(labels, hidden, strict=True)]


class Stages(nn.Module):
    """With the names of torchvision's FasterRCNN."""

    def __init__(self, pyramid: Pyramid, classes: int):
        super().__init__()
        width = pyramid.out_channels
        sizes = tuple(tuple(int(3 * stride * 2 ** (i / 2)) for i in range(2)) for stride in STRIDES)
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(STRIDES))
        self.backbone = pyramid
        proposer = RPNHead(width, anchors.num_anchors_per_location()[0])
        self.rpn = Proposing(anchors, proposer, 0.7, 0.3, 0, 0, PROPOSALS, PROPOSALS, 0.7)
        pool = MultiScaleRoIAlign([str(i) for i in range(len(STRIDES))], POOLED, 2, canonical_scale=CANONICAL)
        layers, last = TwoMLPHead(width * POOLED**2, WIDTH), FastRCNNPredictor(WIDTH, classes + 1)
        self.roi_heads = Regions(pool, layers, last, 0.5, 0.5, 0, 0, None, **LIMITS)
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = Sampler(ANCHORS, 0.5), Sampler(REGIONS, 0.25)


class TwoStages(Model):
    """encoder.stage_maps -> levels -> proposals -> classes and boxes."""

    def __init__(self, encoder: Any, classes: int, size: int):
        super().__init__()
        self.encoder, self.size = encoder, size
        self.head = Stages(pyramid_on(encoder, size), classes)
        each = self.head.rpn.anchor_generator.num_anchors_per_location()
        self.anchors = sum(side**2 * n for side, n in zip(self.head.backbone.sides, each, strict=True))  # of an image

    def levels(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        maps = self.head.backbone(self.encoder.stage_maps(images))
        return OrderedDict((str(i), x.float()) for i, x in enumerate(maps))

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], labels (Boxes), rows. The sum over images of torchvision's four losses of each."""
        images, rows = batch["inputs"], batch["rows"]
        every = self.levels(images)
        numbers = rows.uniform("detection/anchors", self.anchors), rows.uniform("detection/proposals", NUMBERS)
        sums: dict[str, Tensor] = {}
        with torch.autocast(images.device.type, enabled=False):
            for i, target in enumerate(targets_of(batch["labels"])):
                own = OrderedDict((name, x[i : i + 1]) for name, x in every.items())
                for name, loss in self.losses(own, target, (numbers[0][i], numbers[1][i])).items():
                    sums[name] = sums.get(name, loss.new_zeros(())) + loss
        return Loss(sum(sums.values(), images.new_zeros(())), len(images)), {k: Loss(v, len(images)) for k, v in sums.items()}

    def losses(self, levels: Any, target: dict[str, Tensor], numbers: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Of one image; 0 where all of it is ignored."""
        first, second = self.head.rpn, self.head.roi_heads
        first.fg_bg_sampler.numbers, second.fg_bg_sampler.numbers = numbers
        second.ignored = [target]
        first.train()
        second.train()  # so that they give losses; they have no dropout and no batch normalisation
        shape = [(self.size, self.size)]
        proposals, losses = first(ImageList(levels["0"].new_zeros(1, 1, self.size, self.size), shape), levels, [target])
        if not first.fg_bg_sampler.count:
            losses = {}
        _, others = second(levels, proposals, shape, [{**target, "labels": target["labels"] + 1}])
        return losses | (others if second.fg_bg_sampler.count else {})

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """As `Detector.predict`."""
        found = []
        with eval_mode(self):
            for images in batches:
                levels, shapes = self.levels(images), [(self.size, self.size)] * len(images)
                proposals, _ = self.head.rpn(ImageList(images, shapes), levels)
                found += self.head.roi_heads(levels, proposals, shapes)[0]
        return packed([(x["boxes"].cpu(), x["scores"].cpu(), x["labels"].cpu() - 1) for x in found])
