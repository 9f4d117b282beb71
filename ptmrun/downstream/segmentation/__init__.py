"""Semantic segmentation: the class of each pixel, learned from masks."""

from ptmrun.downstream.base import Problem
from ptmrun.downstream.segmentation import metrics
from ptmrun.downstream.segmentation.floors import baseline_predictions
from ptmrun.downstream.segmentation.head import build
from ptmrun.downstream.segmentation.inputs import answer_rows, drawn, opened, unlabelled
from ptmrun.downstream.segmentation.pictures import pictures
from ptmrun.downstream.segmentation.split import with_masks
from ptmrun.downstream.token_head import subset

PROBLEM = Problem(
    metric="mean IoU",
    counted="masks",
    build=build,
    subset=subset,
    valid=metrics.valid,
    score=metrics.score,
    per_sample_scores=metrics.per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=metrics.columns_of_predictions,
    metrics=metrics.metrics,
    answer_rows=answer_rows,
    drawn=drawn,
    opened=opened,
    pictures=pictures,
    averaged=metrics.averaged,
    unlabelled=unlabelled,
    own_answers=with_masks,
    untrained_baselines=("chance", "raw", "random_frozen", "frozen"),
    baseline_phrases={
        "chance": "the most frequent class everywhere",
        "raw": "logistic regression on each pixel's colour and place and their products",
        "random_frozen": "logistic regression on the maps of the untrained model",
        "frozen": "logistic regression on the maps of the pretrained model",
    },
)
