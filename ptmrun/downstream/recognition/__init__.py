"""Speech recognition: the characters that are said in a sound, by connectionist temporal classification (CTC)."""

from typing import Any

from ptmrun.data.sources.sounds import need
from ptmrun.downstream.base import Problem, ProblemSetup
from ptmrun.downstream.recognition import metrics
from ptmrun.downstream.recognition.floors import baseline_predictions
from ptmrun.downstream.recognition.head import build
from ptmrun.downstream.recognition.pictures import pictures
from ptmrun.downstream.recognition.split import TranscribedSplit, with_transcripts
from ptmrun.downstream.token_head import subset


def own_answers(splits: tuple[Any, Any, Any], options: Any, notes: list[str]) -> tuple[Any, Any, Any]:
    """See split.with_transcripts."""
    need("audio", "jiwer")
    return with_transcripts(splits, options, notes)


def unlabelled(raw: list[Any], setup: ProblemSetup) -> TranscribedSplit:
    """Sounds without transcripts."""
    split = setup.processor.split(raw)
    return TranscribedSplit(**vars(split), references=[None] * len(split), characters=setup.facts["characters"])


PROBLEM = Problem(
    metric="character accuracy",
    counted="transcribed sounds",
    build=build,
    subset=subset,
    valid=metrics.valid,
    score=metrics.score,
    per_sample_scores=metrics.per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=metrics.columns_of_predictions,
    metrics=metrics.metrics,
    answer_rows=metrics.answer_rows,
    unlabelled=unlabelled,
    pictures=pictures,
    own_answers=own_answers,
    untrained_baselines=("chance", "raw"),
    baseline_phrases={
        "chance": "always the most frequent transcript",
        "raw": "the transcript of the nearest training sound (time warping of mel spectra)",
    },
    max_baseline_samples=500,
)
