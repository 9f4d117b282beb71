"""How right transcripts are."""

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ptmrun.data.text import scripts
from ptmrun.downstream.recognition.split import TranscribedSplit
from ptmrun.errors import printable

WORST = 20  # sounds that are listed
TOLD = ("sound", "reference", "prediction")


def valid(predictions: dict[str, Tensor], split: TranscribedSplit, classes: list[str]) -> bool:
    """Whether these can be predictions for a split."""
    ids = predictions.get("ids", torch.empty(0))
    if ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != len(split):
        return False
    path = predictions.get("path", torch.zeros(len(split), 1, dtype=torch.int16))  # floors have none
    if path.dtype != torch.int16 or path.ndim != 2 or len(path) != len(split):
        return False
    most = len(split.characters)
    return bool(ids.min() >= 0 and ids.max() <= most and path.min() >= -1 and path.max() <= most)


def errors(predictions: dict[str, Tensor], split: TranscribedSplit) -> tuple[float, float]:
    """Word and character error rate of the whole split by jiwer; characters of scripts without spaces are words."""
    import jiwer

    right, written = split.right(), split.written(predictions["ids"])
    words = jiwer.process_words(*([" ".join(scripts.apart(text).split()) for text in texts] for texts in (right, written)))
    return float(words.wer), float(jiwer.process_characters(right, written).cer)


def score(predictions: dict[str, Tensor], split: TranscribedSplit) -> float:
    """1 - the character error rate of the whole split, 0 at least."""
    return max(0.0, 1.0 - errors(predictions, split)[1])


def per_sample_scores(predictions: dict[str, Tensor], split: TranscribedSplit) -> np.ndarray:
    """The same of each sound, [N]."""
    import jiwer

    pairs = zip(split.right(), split.written(predictions["ids"]), strict=True)
    return np.array([max(0.0, 1.0 - jiwer.process_characters(right, written).cer) for right, written in pairs])


def metrics(predictions: dict[str, Tensor], split: TranscribedSplit, classes: list[str], bins: int) -> dict[str, Any]:
    """Error rates, 0 being best; how many sounds are wholly right; and those that are furthest from their transcript, the worst
    first."""
    words, characters = errors(predictions, split)
    scores, right, written = per_sample_scores(predictions, split), split.right(), split.written(predictions["ids"])
    order, names = np.argsort(scores, kind="stable")[:WORST].tolist(), split.sample_names
    worst = [
        {**dict(zip(TOLD, map(printable, (names[i], right[i], written[i])), strict=True)), "score": round(float(scores[i]), 3)}
        for i in order
    ]
    exact = np.mean([a == b for a, b in zip(right, written, strict=True)])
    return {"wer": words, "cer": characters, "exact": float(exact), "worst": worst}


def columns_of_predictions(predictions: dict[str, Tensor], split: TranscribedSplit, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the transcript and what the model heard (its character accuracy is the row's score)."""
    texts = {"reference": split.right(), "prediction": split.written(predictions["ids"])}
    return {name: pa.array(values, pa.string()) for name, values in texts.items()}


def answer_rows(predictions: dict[str, Tensor], split: Any, classes: list[str], top: int) -> list[dict[str, Any]]:
    """What the model heard."""
    return [{"prediction": text} for text in split.written(predictions["ids"])]
