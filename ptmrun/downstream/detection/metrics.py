"""How right found boxes are: mean average precision (COCO's), by torchmetrics on faster-coco-eval."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ptmrun.batch import NO_BOX
from ptmrun.downstream.detection import average_precision as ap
from ptmrun.downstream.detection.head import MOST
from ptmrun.downstream.detection.merge import Found, Truth, of_images, of_scenes
from ptmrun.downstream.detection.split import BoxedSplit

SIZES = ("small", "medium", "large")  # below 32 x 32 pixels of the scene, below 96 x 96, and above
IOUS = np.linspace(0.5, 0.95, 10).tolist()  # as pycocotools has them: torchmetrics' own are rounded to float32
SHOWN = 0.3  # the score from which boxes are answers, where no labels tell a better one


def valid(predictions: dict[str, Tensor], split: BoxedSplit, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    boxes, scores, kinds = (predictions.get(name, torch.empty(0)) for name in ("boxes", "scores", "classes"))
    fits = boxes.shape == (len(split), MOST, 4) and scores.shape == kinds.shape == (len(split), MOST)
    fits = fits and boxes.is_floating_point() and scores.is_floating_point() and kinds.dtype == torch.int64
    return fits and bool((kinds >= NO_BOX).all() and (kinds < len(classes)).all())


def matches(predictions: dict[str, Tensor], split: BoxedSplit) -> ap.Matches:
    return ap.matches(of_images(predictions, split), len(split.scenes.numbers))


def score(predictions: dict[str, Tensor], split: BoxedSplit) -> float:
    """AP50: the mean over classes of the average precision at an overlap of 0.5, by image (a square of a large one)."""
    return ap.mean(ap.by_class(matches(predictions, split)))


def per_sample_scores(predictions: dict[str, Tensor], split: BoxedSplit) -> np.ndarray:
    """What each image has to do with the AP50 of all, [N]: see average_precision.influences."""
    return ap.influences(matches(predictions, split))


def in_pixels_of_scenes(pairs: list[tuple[Found, Truth]], split: BoxedSplit) -> list[tuple[Found, Truth]]:
    """Boxes of images as large as they are in the scenes."""
    scales = [window.side / split.side for window in split.windows]
    return [
        (found._replace(corners=found.corners * s), truth._replace(corners=truth.corners * s))
        for (found, truth), s in zip(pairs, scales, strict=True)
    ]


def library(pairs: list[tuple[Found, Truth]], classes: list[str]) -> dict[str, Any]:
    """torchmetrics' numbers; null where there is nothing to be found. ap: over overlaps from 0.5 to 0.95."""
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(
        iou_thresholds=IOUS, rec_thresholds=ap.RECALLS.tolist(), backend="faster_coco_eval", class_metrics=True
    )
    metric.warn_on_many_detections = False
    for found, truth in pairs:
        one = {"boxes": found.corners, "scores": found.scores, "labels": found.classes}
        other = {"boxes": truth.corners, "labels": truth.classes, "iscrowd": truth.ignored.astype(np.int64)}
        metric.update(*([{name: torch.as_tensor(x) for name, x in group.items()}] for group in (one, other)))
    values = {name: value.tolist() for name, value in metric.compute().items()}

    def known(value: float) -> float | None:
        return None if value < 0 else float(value)

    result = {"map": known(values["map"]), "ap50": known(values["map_50"]), "ap75": known(values["map_75"])}
    result |= {f"map_{size}": known(values[f"map_{size}"]) for size in SIZES}
    result["recall_100"] = known(values["mar_100"])
    numbers, each = (x if isinstance(x, list) else [x] for x in (values["classes"], values["map_per_class"]))
    by_number = dict(zip(numbers, each, strict=True))
    return result | {"per_class": {name: {"map": known(by_number.get(i, -1.0))} for i, name in enumerate(classes)}}


def metrics(predictions: dict[str, Tensor], split: BoxedSplit, classes: list[str], bins: int) -> dict[str, Any]:
    """mAP over overlaps from 0.5 to 0.95, AP50, AP75, by size (in pixels of the scenes) and class, at most 100 found boxes an
    image; the best F1 and its threshold; AP50 of whole scenes, where these were cut into squares; classes that no test image
    has."""
    pairs = of_images(predictions, split)
    found = ap.matches(pairs, len(classes))
    result = library(in_pixels_of_scenes(pairs, split), classes)
    at_half, counts = ap.by_class(found), found.positives.sum(0)
    for i, name in enumerate(classes):
        result["per_class"][name] |= {"ap50": at_half.get(i), "n": int(counts[i])}
    threshold, f1 = ap.best_threshold(found)
    result |= {"f1": f1, "threshold": threshold, "boxes": int(counts.sum())}
    result["absent"] = [name for i, name in enumerate(classes) if not counts[i]]
    if split.scenes.tile:
        whole = [(x, y) for _, x, y in of_scenes(predictions, split)]
        merged = ap.matches(whole, len(classes), limit=None)
        result["merged"] = {"ap50": ap.mean(ap.by_class(merged)), "f1": ap.best_threshold(merged)[1], "scenes": len(whole)}
    return result


def columns_of_predictions(predictions: dict[str, Tensor], split: BoxedSplit, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: boxes (left, top, right, bottom in pixels of the image), names and scores of what is found, and F1
    of each image at the threshold that is best for all (a row's `score` is its part in the AP50)."""
    pairs = of_images(predictions, split)
    found = ap.matches(pairs, len(classes))
    f1 = ap.image_f1(found, ap.best_threshold(found)[0])
    boxes = pa.array([x.corners.round(1).tolist() for x, _ in pairs], pa.list_(pa.list_(pa.float32())))
    names = pa.array([[classes[c] for c in x.classes] for x, _ in pairs], pa.list_(pa.string()))
    scores = pa.array([x.scores.tolist() for x, _ in pairs], pa.list_(pa.float32()))
    true = pa.array([len(y.classes) for _, y in pairs], pa.int32())
    return {"boxes": boxes, "found": names, "scores": scores, "true_boxes": true, "f1": pa.array(f1.astype(np.float32))}


def answer_rows(predictions: dict[str, Tensor], split: BoxedSplit, classes: list[str], top: int) -> list[dict[str, Any]]:
    """Of each picture, in its own pixels: how many of each class are found with a score of SHOWN or more, and these boxes [left,
    top, right, bottom] with their classes and scores."""
    rows = []
    for scene, found, _ in of_scenes(predictions, split):
        sure = found.scores >= SHOWN
        names = [classes[c] for c in found.classes[sure]]
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        rows.append(
            {
                "prediction": [f"{count} {name}" for name, count in counts.items()],
                "width": scene.width,
                "height": scene.height,
                "boxes": [[round(x, 2) for x in box] for box in found.corners[sure].astype(float).tolist()],
                "classes": names,
                "scores": [round(x, 4) for x in found.scores[sure].astype(float).tolist()],
            }
        )
    return rows
