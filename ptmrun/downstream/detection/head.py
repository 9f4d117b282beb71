"""The model of detection: torchvision's FCOS (Tian et al. 2020, arXiv:2006.09214) or RetinaNet (Lin et al. 2017,
arXiv:1708.02002) on a small feature pyramid."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from ptmrun.batch import NO_BOX, Boxes
from ptmrun.downstream.base import Model, ProblemSetup
from ptmrun.downstream.detection.losses import Anchored, Dense, targets_of
from ptmrun.downstream.detection.pyramid import STRIDES, Pyramid
from ptmrun.errors import UserError
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode

MOST = 100  # boxes of an image, as COCO counts
TWICE = 0.5  # intersection over union of two found boxes of a class, from which the less sure one is left out
UNSURE = 0.05  # a score below which nothing is found
CONVOLUTIONS = 2  # of each branch of the head; torchvision's 4 are for larger images


class Detector(Model):
    """encoder.stage_maps -> levels -> at each place classes and a box. head: torchvision's detector, with the pyramid as its
    backbone."""

    def __init__(self, encoder: Any, classes: int, size: int, detector: str):
        super().__init__()
        self.encoder, self.size = encoder, size
        self.empty = 1.0  # what a micro-batch without a box counts, where the whole batch has none
        for module in encoder.above_map:
            module.requires_grad_(False)  # no box depends on it
        device = next(encoder.parameters()).device
        with eval_mode(encoder), torch.no_grad():
            maps = encoder.stage_maps(torch.zeros(1, encoder.channels, size, size, device=device))
        pyramid = Pyramid([x.shape[1] for x in maps], [x.shape[-1] for x in maps], size)
        common = {"score_thresh": UNSURE, "detections_per_img": MOST, "nms_thresh": TWICE}
        if detector == "fcos":
            anchors = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
            head = Dense(pyramid.out_channels, 1, classes, CONVOLUTIONS)
            self.head = FCOS(pyramid, classes, anchor_generator=anchors, head=head, **common)
        else:
            sizes = tuple(tuple(int(2 * stride * 2 ** (i / 3)) for i in range(3)) for stride in STRIDES)
            anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(STRIDES))
            head = Anchored(pyramid.out_channels, anchors.num_anchors_per_location()[0], classes)
            self.head = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **common)

    def places(self, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """(what the head says of each place, float32 [B, L, n] by name, anchors [L, 4] of each image, places of each level)"""
        levels = self.head.backbone(self.encoder.stage_maps(images))
        outputs = {name: x.float() for name, x in self.head.head(levels).items()}
        anchors = self.anchors(images, levels)
        each = self.head.anchor_generator.num_anchors_per_location()
        return outputs, anchors, [x.shape[2] * x.shape[3] * n for x, n in zip(levels, each, strict=True)]

    def anchors(self, images: Tensor, levels: list[Tensor]) -> list[Tensor]:
        shapes = [(images.shape[2], images.shape[3])] * len(images)
        return self.head.anchor_generator(ImageList(images, shapes), levels)

    def losses(self, labels: Boxes, outputs: dict[str, Tensor], anchors: list[Tensor], counts: list[int]) -> dict[str, Tensor]:
        """Sums; by how many they are divided is `head.head.counted`."""
        more = (counts,) if isinstance(self.head, FCOS) else ()
        return self.head.compute_loss(targets_of(labels), outputs, anchors, *more)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], labels (Boxes). As torchvision's: FCOS's are divided by the places in boxes."""
        outputs, anchors, counts = self.places(batch["inputs"])
        with torch.autocast(batch["inputs"].device.type, enabled=False):
            losses = self.losses(batch["labels"], outputs, anchors, counts)
        number = self.head.head.counted or torch.tensor(self.empty)
        total = sum(losses.values(), torch.zeros((), device=batch["inputs"].device))
        return Loss(total, number), {name: Loss(loss, number) for name, loss in losses.items()}

    @torch.no_grad()
    def count(self, micros: list[dict[str, Any]]) -> None:
        """Where no place of the whole batch is in a box, its sums are divided by 1, as torchvision's are."""
        places = 0
        for micro in micros:
            images = micro["inputs"]
            levels = [images.new_zeros(len(images), 1, side, side) for side in self.head.backbone.sides]
            each = self.head.anchor_generator.num_anchors_per_location()
            counts = [side**2 * n for side, n in zip(self.head.backbone.sides, each, strict=True)]
            widths = {"cls_logits": self.head.head.classification_head.num_classes, "bbox_regression": 4, "bbox_ctrness": 1}
            zeros = {name: images.new_zeros(len(images), sum(counts), n) for name, n in widths.items()}
            self.losses(micro["labels"], zeros, self.anchors(images, levels), counts)
            places += self.head.head.counted
        whole, parts = self.add_up([places, len(micros)])
        self.empty = 0.0 if whole else 1 / parts

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Of all images, the surest first: boxes [N, MOST, 4] in pixels, their scores and classes [N, MOST], NO_BOX where there
        are fewer, on the CPU."""
        found = []
        with eval_mode(self):
            for images in batches:
                outputs, anchors, counts = self.places(images)
                parts = {name: list(x.split(counts, 1)) for name, x in outputs.items()}
                shapes = [(images.shape[2], images.shape[3])] * len(images)
                found += self.head.postprocess_detections(parts, [list(a.split(counts)) for a in anchors], shapes)
        return packed([(x["boxes"].cpu(), x["scores"].cpu(), x["labels"].cpu()) for x in found])


def packed(found: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Boxes [n, 4], scores and classes [n] of each image, as `Detector.predict` gives them."""
    boxes, scores = torch.zeros(len(found), MOST, 4), torch.zeros(len(found), MOST)
    classes = torch.full((len(found), MOST), NO_BOX)
    for i, (corners, sure, own) in enumerate(found):
        n = min(MOST, len(sure))
        boxes[i, :n], scores[i, :n], classes[i, :n] = corners[:n], sure[:n], own[:n]
    return {"boxes": boxes, "scores": scores, "classes": classes}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Detector:
    """The model of a fine-tuning with these options, before training. Raises UserError for images of a side that does not fit."""
    size, unit = setup.processor.size, STRIDES[-1]
    if size % unit:
        near = max(unit, unit * round(size / unit))
        raise UserError(f"dataset.image_size={size}: detection wants a multiple of {unit}, such as {near}")
    return Detector(encoder, len(setup.classes), size, setup.options.detector)
