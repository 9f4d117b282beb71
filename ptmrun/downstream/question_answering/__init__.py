"""Extractive question answering."""

from ptmrun.downstream.base import Problem
from ptmrun.downstream.question_answering.answers import answer_rows, averaged, files
from ptmrun.downstream.question_answering.floors import baseline_predictions
from ptmrun.downstream.question_answering.head import build
from ptmrun.downstream.question_answering.inputs import inputs, unlabelled
from ptmrun.downstream.question_answering.metrics import columns_of_predictions, per_sample_scores, score, valid
from ptmrun.downstream.question_answering.metrics import metrics as all_metrics
from ptmrun.downstream.question_answering.read import read_splits
from ptmrun.downstream.token_head import subset

PROBLEM = Problem(
    metric="f1",  # of the words of an answer, the mean over questions
    counted="labelled questions",  # in all
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
    files=files,
    untrained_baselines=("chance", "raw"),
    baseline_phrases={
        "chance": "always the most frequent answer",
        "raw": "a name in the sentence that shares most words with the question",
    },
)
