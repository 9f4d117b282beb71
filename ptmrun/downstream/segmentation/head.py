"""The models of segmentation: heads on the maps of an encoder's stages."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from ptmrun.data.sources import IGNORED, palettes
from ptmrun.downstream.base import Model, ProblemSetup
from ptmrun.downstream.class_counts import counts
from ptmrun.loss import Loss, smoothed_entropy
from ptmrun.models.modes import eval_mode

WIDTH = 64  # of the map that all stages are brought to
OF_PIXELS = 16  # features of the image itself, at its own resolution
FINEST = 32  # places a side of a map, or a quarter of the image's: finer maps are left out where coarser ones do
RATES, AT = (12, 24, 36), 64  # DeepLabV3's dilations, and the side of a map that they are made for


class Levels(nn.Module):
    """The maps of the stages that are fine enough to be useful and coarse enough to be cheap. widths: of their channels; side: of
    the finest."""

    def __init__(self, encoder: Any, size: int):
        super().__init__()
        with eval_mode(encoder), torch.no_grad():
            where = next(encoder.parameters()).device
            maps = encoder.stage_maps(torch.zeros(1, encoder.channels, size, size, device=where))
        first = leading([x.shape[-1] for x in maps], size)
        self.count, self.side = len(maps) - first, maps[first].shape[-1]
        self.widths = [x.shape[1] for x in maps[first:]]

    def forward(self, encoder: Any, images: Tensor) -> list[Tensor]:
        return encoder.stage_maps(images)[-self.count :]


def leading(sides: Sequence[int], size: int) -> int:
    """Which of the maps with these sides, the finest first, is the first to be used."""
    place = 0
    while place + 1 < len(sides) and sides[place] > max(FINEST, size // 4) and sides[place + 1] >= size // 8:
        place += 1
    return place


def scaled(x: Tensor, side: int) -> Tensor:
    """[B, D, h, h] -> [B, D, side, side], bilinear."""
    return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


class Concatenated(nn.Module):
    """The normalised maps of all stages, at the side of the finest, one after the other: what a linear head sees (as in the
    linear evaluation of DINOv2: Oquab et al. 2023, arXiv:2304.07193)."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.width = sum(widths)

    def forward(self, maps: list[Tensor]) -> Tensor:
        side = maps[0].shape[-1]
        return torch.cat([scaled(norm(x), side) for norm, x in zip(self.norms, maps, strict=True)], 1)


class Fused(nn.Module):
    """Skips of all stages (Long et al. 2015, arXiv:1411.4038), projected to WIDTH and summed, then a body of torchvision's: that
    of its FCNHead or of its DeepLabHead (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, widths: list[int], side: int, deeplab: bool):
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)) for width in widths
        )
        if deeplab:
            rates = [max(1, round(rate * side / AT)) for rate in RATES]
            self.body = nn.Sequential(*list(DeepLabHead(WIDTH, 1, rates))[:-1])
            self.width = 256
        else:
            block = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Dropout(0.1)]
            self.body = nn.Sequential(*block)
            self.width = WIDTH

    def forward(self, maps: list[Tensor]) -> Tensor:
        side = maps[0].shape[-1]
        whole = torch.stack([scaled(project(x), side) for project, x in zip(self.projections, maps, strict=True)]).sum(0)
        return self.body(whole.relu())


class Head(nn.Module):
    """Maps of stages and images -> one logit a class and pixel: a linear layer on the features of a place, and unless `kind` is
    linear on a few of the image itself at each pixel. weight [K, D, 1, 1], bias [K]."""

    def __init__(self, levels: Levels, channels: int, classes: int, kind: str):
        super().__init__()
        self.pixels = None
        self.decoder: Concatenated | Fused
        if kind == "linear":
            self.decoder = Concatenated(levels.widths)
        else:
            self.decoder = Fused(levels.widths, levels.side, kind == "deeplab")
            first = nn.Conv2d(channels, OF_PIXELS, 3, padding=1, bias=False)
            self.pixels = nn.Sequential(first, nn.BatchNorm2d(OF_PIXELS), nn.ReLU())
        width = self.decoder.width + (OF_PIXELS if self.pixels else 0)
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(classes, width, 1, 1), std=0.02))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, maps: list[Tensor], images: Tensor) -> Tensor:
        """[B, C, S, S] -> float32 [B, K, S, S]. The linear layer comes before features are scaled up, which is the same."""
        features = self.decoder(maps)
        fine = self.pixels(images) if self.pixels else None
        with torch.autocast(images.device.type, enabled=False):
            width = self.decoder.width
            result = scaled(F.conv2d(features.float(), self.weight[:, :width], self.bias), images.shape[-1])
            return result if fine is None else result + F.conv2d(fine.float(), self.weight[:, width:])


class Segmenter(Model):
    """encoder.stage_maps -> head. What of the encoder lies above the maps is not trained."""

    graph_task = "masks"

    weights: Tensor | None  # of the classes, [K]

    def __init__(self, encoder: Any, classes: int, size: int, kind: str, label_smoothing: float):
        super().__init__()
        self.encoder, self.label_smoothing = encoder, label_smoothing
        for module in encoder.above_map:
            module.requires_grad_(False)
        self.levels = Levels(encoder, size)
        self.head = Head(self.levels, encoder.channels, classes, kind)
        self.register_buffer("weights", None)

    def logits(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> float32 [B, K, S, S]"""
        return self.head(self.levels(self.encoder, images), images)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, C, S, S], labels (PixelClasses). The loss is the cross-entropy of the pixels that count, or where
        classes have weights the weighted mean of it."""
        truth, logits = batch["labels"].numbers, self.logits(batch["inputs"])
        options = {"weight": self.weights, "ignore_index": IGNORED, "label_smoothing": self.label_smoothing}
        loss = F.cross_entropy(logits, truth, reduction="sum", **options)  # type: ignore[arg-type]
        known = truth != IGNORED
        n = known.sum() if self.weights is None else self.weights.to(truth.device)[truth[known]].sum()
        right = (logits.detach().argmax(1) == truth)[known].sum()
        return Loss(loss, n.clamp(min=1e-12)), {"pixel_accuracy": Loss(right, known.sum().clamp(min=1))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(K)."""
        return math.log(len(self.head.bias))

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        return smoothed_entropy(self.label_smoothing, len(self.head.bias))

    def balance_classes(self, labels: Tensor | None) -> None:
        if labels is None:
            self.weights = torch.ones_like(self.head.bias)
            return
        known = counts(labels, len(self.head.bias))
        seen = int((known > 0).sum())
        self.weights = (len(labels) / (seen * known.clamp(min=1))).to(self.head.weight)

    def outputs(self, inputs: Any) -> Tensor:
        return self.logits(inputs)

    def recipe(self, setup: ProblemSetup) -> dict[str, Any]:
        return {"palette": setup.facts.get("palette") or palettes.usual(len(setup.classes))}

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """On the CPU: the likeliest class of each pixel of all images, uint8 [N, S, S], and how sure of these the model is, the
        mean over each image [N]."""
        classes, sure = [], []
        with eval_mode(self):
            for images in batches:
                best = self.logits(images).softmax(1).max(1)
                classes.append(best.indices.to(torch.uint8).cpu())
                sure.append(best.values.mean((1, 2)).cpu())
        return {"masks": torch.cat(classes), "confidence": torch.cat(sure)}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Segmenter:
    """The model of a fine-tuning with these options, before training."""
    return Segmenter(encoder, len(setup.classes), setup.processor.spec.size, setup.options.head, options.label_smoothing)
