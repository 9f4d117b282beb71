"""A tag for every word (names in BIO tags, parts of speech)."""

from ptmrun.downstream.base import Problem
from ptmrun.downstream.token_classification.head import build
from ptmrun.downstream.token_classification.inputs import inputs, unlabelled
from ptmrun.downstream.token_classification.metrics import (
    answer_rows,
    averaged,
    baseline_predictions,
    columns_of_predictions,
    per_sample_scores,
    score,
    valid,
)
from ptmrun.downstream.token_classification.metrics import metrics as all_metrics
from ptmrun.downstream.token_classification.read import read_splits
from ptmrun.downstream.token_head import subset

PROBLEM = Problem(
    metric="f1",  # of whole names (BIO); of plain tags micro-averaged over words, which is the share of right words
    counted="labelled sentences",  # in all
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=columns_of_predictions,
    metrics=all_metrics,
    answer_rows=answer_rows,
    averaged=averaged,
    inputs=inputs,
    unlabelled=unlabelled,
    read_splits=read_splits,
    untrained_baselines=("chance", "raw"),
    baseline_phrases={"chance": "always the most frequent tag", "raw": "each word's most frequent tag in training"},
    max_baseline_samples=10**9,  # counting words takes no time
)
