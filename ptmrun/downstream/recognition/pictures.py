"""What is drawn of recognised sounds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.data.modality import Picture
from ptmrun.downstream.recognition import ctc
from ptmrun.downstream.recognition.metrics import per_sample_scores
from ptmrun.downstream.recognition.split import TranscribedSplit
from ptmrun.errors import printable
from ptmrun.log_mel import LogMel

SHOWN, LONGEST = 6, 60  # sounds, from the best to the worst; characters of a transcript above one


def pictures(predictions: dict[str, Tensor], split: TranscribedSplit, classes: list[str], processor: Any) -> list[Picture]:
    """Spectra with the characters of the path at their frames."""
    order = np.argsort(-per_sample_scores(predictions, split), kind="stable")
    rows = torch.from_numpy(order[np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int)])
    waves = processor(next(split.batches([rows]))).to(torch.device("cpu"))
    rate = processor.rate
    spectra = [x[there].T for x, there in zip(*LogMel(rate)(waves), strict=True)]
    right, written = split.right(), split.written(predictions["ids"])
    titles = [f"{short(right[i])}  →  {short(written[i])}" for i in rows.tolist()]
    marks = [marked(path[path >= 0], split.characters) for path in predictions["path"][rows]]
    return [Picture("spectrograms", ("alignment", spectra, None, titles, rate // 100 / rate, marks))]


def marked(path: Tensor, characters: str) -> list[tuple[float, str]]:
    """(share of the frames before it, character) of each frame [t] of another character than the one before, blanks left out."""
    new = (path != ctc.BLANK) & (path != torch.cat([path.new_full((1,), ctc.BLANK), path[:-1]]))
    places = new.nonzero()[:, 0].tolist()
    return [((i + 0.5) / len(path), characters[path[i] - 1].replace(" ", "␣")) for i in places]


def short(text: str) -> str:
    return printable(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
