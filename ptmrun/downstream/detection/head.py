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
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode

MOST = 100  # boxes of an image, as COCO counts
TWICE = 0.5  # intersection over union of two found boxes of a class, from which the less sure one is left out
UNSURE = 0.05  # a score below which nothing is found
LIMITS: dict[str, Any] = {"score_thresh": UNSURE, "detections_per_img": MOST, "nms_thresh": TWICE}
CONVOLUTIONS = 2  # of each branch of the head; torchvision's 4 are for larger images


class Detector(Model):
    """encoder.stage_maps -> levels -> at each place classes and a box. head: torchvision's detector, with the pyramid as its
    backbone."""

    graph_task = "boxes"
    grid: Tensor  # anchors of an image, [L, 4]

    def __init__(self, encoder: Any, classes: int, size: int, detector: str):
        super().__init__()
        self.encoder, self.size = encoder, size
        self.empty = 1.0  # what a micro-batch without a box counts, where the whole batch has none
        pyramid = pyramid_on(encoder, size)
        if detector == "fcos":
            anchors = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
            head = Dense(pyramid.out_channels, 1, classes, CONVOLUTIONS)
            self.head = FCOS(pyramid, classes, anchor_generator=anchors, head=head, **LIMITS)
        else:
            sizes = tuple(tuple(int(2 * stride * 2 ** (i / 3)) for i in range(3)) for stride in STRIDES)
            anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(STRIDES))
            head = Anchored(pyramid.out_channels, anchors.num_anchors_per_location()[0], classes)
            self.head = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **LIMITS)
        levels = [torch.zeros(1, 1, side, side) for side in pyramid.sides]
        [grid] = anchors(ImageList(torch.zeros(1, 1, size, size), [(size, size)]), levels)
        self.register_buffer("grid", grid.to(next(encoder.parameters()).device), persistent=False)
        each = anchors.num_anchors_per_location()
        self.counts = [side**2 * n for side, n in zip(pyramid.sides, each, strict=True)]  # of each level's places

    def places(self, images: Tensor) -> dict[str, Tensor]:
        """What the head says of each place, float32 [B, L, n] by name."""
        levels = self.head.backbone(self.encoder.stage_maps(images))
        return {name: x.float() for name, x in self.head.head(levels).items()}

    def losses(self, labels: Boxes, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums; by how many they are divided is `head.head.counted`."""
        more = (self.counts,) if isinstance(self.head, FCOS) else ()
        return self.head.compute_loss(targets_of(labels), outputs, [self.grid] * len(labels.classes), *more)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], labels (Boxes). As torchvision's: FCOS's are divided by the places in boxes."""
        outputs = self.places(batch["inputs"])
        with torch.autocast(batch["inputs"].device.type, enabled=False):
            losses = self.losses(batch["labels"], outputs)
        number = self.head.head.counted or torch.tensor(self.empty)
        total = sum(losses.values(), torch.zeros((), device=batch["inputs"].device))
        return Loss(total, number), {name: Loss(loss, number) for name, loss in losses.items()}

    @torch.no_grad()
    def count(self, micros: list[dict[str, Any]]) -> None:
        """Where no place of the whole batch is in a box, its sums are divided by 1, as torchvision's are."""
        places = 0
        for micro in micros:
            images = micro["inputs"]
            widths = {"cls_logits": self.head.head.classification_head.num_classes, "bbox_regression": 4, "bbox_ctrness": 1}
            zeros = {name: images.new_zeros(len(images), len(self.grid), n) for name, n in widths.items()}
            self.losses(micro["labels"], zeros)
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
                parts = {name: list(x.split(self.counts, 1)) for name, x in self.places(images).items()}
                anchors, shapes = [list(self.grid.split(self.counts))] * len(images), [(self.size, self.size)] * len(images)
                found += self.head.postprocess_detections(parts, anchors, shapes)
        return packed([(x["boxes"].cpu(), x["scores"].cpu(), x["labels"].cpu()) for x in found])

    def outputs(self, inputs: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, L, classes + 4]: of each place the score of each class, and left, top, right and bottom of its box
        as shares of the side, before what is found twice is left out."""
        said = self.places(inputs)
        scores, codes = said["cls_logits"].sigmoid(), said["bbox_regression"]
        if isinstance(self.head, FCOS):
            scores = (scores * said["bbox_ctrness"].sigmoid()).sqrt()
            boxes = self.head.box_coder.decode(codes, self.grid)
        else:
            every = self.grid.expand(codes.shape).flatten(0, 1)
            boxes = self.head.box_coder.decode_single(codes.flatten(0, 1), every).view(codes.shape)
        return torch.cat([scores, boxes.clamp(0, self.size) / self.size], 2)

    def recipe(self, setup: ProblemSetup) -> dict[str, Any]:
        limits = {"unsure": UNSURE, "twice": TWICE, "most": MOST, "candidates": self.head.topk_candidates}
        tiles = {"tile": setup.facts.get("tile"), "overlap": setup.facts.get("overlap", 0.0)}
        return {"places": self.counts, **limits, **tiles, "categories": setup.facts["categories"]}


def packed(found: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Tensor]:
    """Boxes [n, 4], scores and classes [n] of each image, as `Detector.predict` gives them."""
    boxes, scores = torch.zeros(len(found), MOST, 4), torch.zeros(len(found), MOST)
    classes = torch.full((len(found), MOST), NO_BOX)
    for i, (corners, sure, own) in enumerate(found):
        n = min(MOST, len(sure))
        boxes[i, :n], scores[i, :n], classes[i, :n] = corners[:n], sure[:n], own[:n]
    return {"boxes": boxes, "scores": scores, "classes": classes}


def pyramid_on(encoder: Any, size: int) -> Pyramid:
    """For images of this side. What of the encoder lies above the maps is not trained: no box depends on it."""
    for module in encoder.above_map:
        module.requires_grad_(False)
    device = next(encoder.parameters()).device
    with eval_mode(encoder), torch.no_grad():
        maps = encoder.stage_maps(torch.zeros(1, encoder.channels, size, size, device=device))
    return Pyramid([x.shape[1] for x in maps], [x.shape[-1] for x in maps], size)
