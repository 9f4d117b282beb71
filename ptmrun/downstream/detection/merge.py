"""What is found in the windows of a scene, put together in its own pixels; and what is to be found there."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from ptmrun.batch import NO_BOX
from ptmrun.data.sources import Scene, Window
from ptmrun.downstream.detection.head import TWICE
from ptmrun.downstream.detection.split import VISIBLE, BoxedSplit, area

INSIDE = 0.7  # share of a box that a window has cut, within another one of its class, at which it is part of that
EDGE = 1.5  # pixels of the window's image, nearer to its border than which a box is cut by it


class Found(NamedTuple):
    """corners float32 [n, 4], scores float32 [n], classes int64 [n], the surest first."""

    corners: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Truth(NamedTuple):
    """corners float32 [n, 4], classes int64 [n], ignored bool [n]."""

    corners: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


def of_images(predictions: dict[str, Tensor], split: BoxedSplit) -> list[tuple[Found, Truth]]:
    """Of each image of a split, in its own pixels, N."""
    pairs = []
    for i in range(len(split)):
        chosen = predictions["classes"][i] != NO_BOX
        found = Found(*(predictions[name][i][chosen].numpy() for name in ("boxes", "scores", "classes")))
        pairs.append((found, Truth(*split.boxes(i))))
    return pairs


def of_scenes(predictions: dict[str, Tensor], split: BoxedSplit) -> list[tuple[Scene, Found, Truth]]:
    """Of each scene of which a split has windows, in the scene's pixels; boxes that none of these windows shows are ignored."""
    by_scene: dict[int, list[int]] = {}
    for i, window in enumerate(split.windows):
        by_scene.setdefault(window.scene, []).append(i)
    result = []
    for number, images in by_scene.items():
        scene, windows = split.scenes.scenes[number], [split.windows[i] for i in images]
        parts = [in_scene(predictions, i, window, scene, split.side) for i, window in zip(images, windows, strict=True)]
        found = merged(*(torch.cat(x) for x in zip(*parts, strict=True))) if len(parts) > 1 else alone(*parts[0])
        result.append((scene, found, Truth(scene.corners, scene.classes, scene.ignored | ~seen(scene, windows))))
    return result


def seen(scene: Scene, windows: list[Window]) -> np.ndarray:
    """Which boxes are shown by at least one of the windows, [n] bool."""
    shown = np.zeros(len(scene.classes), dtype=bool)
    for window in windows:
        offset = np.array([window.left, window.top] * 2, dtype=np.float32)
        inside = (scene.corners - offset).clip(0, window.side)
        shown |= area(inside) >= VISIBLE * area(scene.corners)
    return shown


def in_scene(
    predictions: dict[str, Tensor], index: int, window: Window, scene: Scene, side: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(boxes in the scene's pixels [n, 4], scores, classes, which of them the window has cut [n])"""
    chosen = predictions["classes"][index] != NO_BOX
    boxes, scores, classes = (predictions[name][index][chosen] for name in ("boxes", "scores", "classes"))
    left, top = max(window.left, 0), max(window.top, 0)
    inner = torch.tensor(  # borders of the window that are none of the scene
        [left > 0, top > 0, window.left + window.side < scene.width, window.top + window.side < scene.height]
    )
    near = torch.cat([boxes[:, :2] < EDGE, boxes[:, 2:] > side - EDGE], 1)
    corners = boxes * (window.side / side) + torch.tensor([window.left, window.top] * 2)
    limits = torch.tensor([scene.width, scene.height] * 2)
    return torch.minimum(corners.clamp(min=0), limits), scores, classes, (near & inner).any(1)


def alone(boxes: Tensor, scores: Tensor, classes: Tensor, cut: Tensor) -> Found:
    return Found(boxes.numpy(), scores.numpy(), classes.numpy())


def merged(boxes: Tensor, scores: Tensor, classes: Tensor, cut: Tensor) -> Found:
    """Without what is found twice, and without parts of what another window shows whole."""
    if len(boxes):
        same = classes[:, None] == classes
        both = box_iou(boxes, boxes)
        sizes = area(boxes)
        shared = both * (sizes[:, None] + sizes) / (1 + both)  # the intersection
        part = (shared / sizes[:, None].clamp(min=1e-6) > INSIDE) & same & ~cut & (sizes > sizes[:, None])
        whole = ~(cut & part.any(1))
        boxes, scores, classes = boxes[whole], scores[whole], classes[whole]
    keep = batched_nms(boxes, scores, classes, TWICE)
    return Found(boxes[keep].numpy(), scores[keep].numpy(), classes[keep].numpy())
