"""Detection: boxes around what is in an image, and their classes."""

import importlib.util
from typing import Any

from ptmrun.downstream.base import Problem
from ptmrun.downstream.detection.detectors import build
from ptmrun.downstream.detection.floors import baseline_predictions
from ptmrun.downstream.detection.inputs import opened, unlabelled
from ptmrun.downstream.detection.metrics import (
    answer_rows,
    columns_of_predictions,
    per_sample_scores,
    score,
    valid,
)
from ptmrun.downstream.detection.metrics import metrics as all_metrics
from ptmrun.downstream.detection.pictures import pictures
from ptmrun.downstream.detection.split import with_boxes
from ptmrun.downstream.detection.written import coco, drawn, files
from ptmrun.downstream.token_head import subset
from ptmrun.errors import UserError

PACKAGES = ("torchmetrics", "faster_coco_eval")


def own_answers(splits: tuple[Any, Any, Any], options: Any, notes: list[str]) -> tuple[Any, Any, Any]:
    """See split.with_boxes. Raises UserError where what scores them is not installed."""
    if lacking := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"downstream=detection needs {' and '.join(lacking)}; install with: pip install 'ptmrun[detection]'")
    return with_boxes(splits, options, notes)


PROBLEM = Problem(
    metric="AP50",
    counted="labelled images",
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=columns_of_predictions,
    metrics=all_metrics,
    answer_rows=answer_rows,
    opened=opened,
    unlabelled=unlabelled,
    own_answers=own_answers,
    files=files,
    written={".json": coco},
    drawn=drawn,
    pictures=pictures,
    untrained_baselines=("chance", "raw", "random_frozen", "frozen"),
    frozen_heads=True,
    baseline_phrases={
        "chance": "the most usual boxes of the training images, in every image",
        "raw": "the boxes of the training image with the nearest pixels",
        "random_frozen": "the same head, trained on the untrained model, which stays as it is",
        "frozen": "the same head, trained on the pretrained model, which stays as it is",
    },
)
