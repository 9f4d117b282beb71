"""Sounds with what is said in them."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import Tokens
from ptmrun.data.audio.split import AudioSplit
from ptmrun.data.text.split import padded
from ptmrun.downstream.recognition import ctc
from ptmrun.errors import UserError, printable

APOSTROPHES = "'’"
MOST_SHOWN = 20  # characters in a note


@dataclass(kw_only=True)
class TranscribedSplit(AudioSplit):
    """Sounds (see AudioSplit) with transcripts as they are counted, of every sound of the source, None where it has none;
    characters: those of the training transcripts, sorted, whose numbers begin with 1."""

    references: list[str | None]
    characters: str
    answered = True

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"characters": self.characters}

    def right(self) -> list[str]:
        """The transcripts themselves."""
        return [self.references[r] or "" for r in self.rows.tolist()]

    def target(self, text: str) -> np.ndarray:
        """Its characters as numbers; one that training has not seen has none."""
        return np.array([self.characters.index(c) + 1 for c in text if c in self.characters], dtype=np.int64)

    def answers(self, indices: Tensor) -> Tokens:
        targets = [self.target(self.references[r] or "") for r in self.rows[indices].tolist()]
        return padded(targets, [np.zeros_like(t) for t in targets], ctc.BLANK)

    def written(self, ids: Tensor) -> list[str]:
        """Rows of numbers [N, T], padded with 0, as text."""
        return ["".join(self.characters[i - 1] for i in row if i) for row in ids.tolist()]

    def doubts(self, encoder: Callable[[], Any]) -> list[str]:
        """What of these transcripts is longer than the frames of its sound has, so that it teaches nothing."""
        frames = encoder().mel.count(self.lengths).tolist()
        long = [i for i, text in enumerate(self.right()) if ctc.needed(self.target(text)) > frames[i]]
        if not long:
            return []
        what = f"{len(long):,} of {len(self):,} training transcripts want more frames than their sound has and teach nothing"
        return [f"Warning: {what}, the first that of {self.sample_names[long[0]]}; half the model.stack gives twice as many"]


def normalised(text: str, options: Any) -> str:
    """A transcript as it is learned and counted: lower case, without punctuation, single spaces; as the options say."""
    text = unicodedata.normalize("NFC", text)
    if options.lowercase:
        text = text.lower()
    if not options.punctuation:
        kept = (c if unicodedata.category(c)[0] not in "PS" or c in APOSTROPHES else " " for c in text)
        text = "".join(kept).replace("’", "'")
    return " ".join(text.split())


def with_transcripts(
    splits: tuple[AudioSplit, AudioSplit, AudioSplit], options: Any, notes: list[str]
) -> tuple[TranscribedSplit, TranscribedSplit, TranscribedSplit]:
    """Training, validation and test split, without sounds that have no transcript. Raises UserError where nothing is left."""
    if not any(split.transcripts for split in splits):
        raise UserError(
            "downstream=recognition: no sound has a transcript; expected a column of them in a table of files "
            "(dataset.text_column), or clip.txt beside clip.wav"
        )
    result, characters = [], ""
    for name, split in zip(("training", "validation", "test"), splits, strict=True):
        texts = split.transcripts or [None] * (int(split.rows.max()) + 1)
        references = [None if text is None else normalised(text, options) for text in texts]
        known = [i for i, row in enumerate(split.rows.tolist()) if references[row]]
        if without := len(split) - len(known):
            notes.append(f"{without:,} of {len(split):,} {name} sounds have no transcript, or an empty one, and are left out")
        if not known:
            raise UserError(f"downstream=recognition: no sound of the {name} split has a transcript")
        alone = vars(split.subset(torch.tensor(known))) | {"labels": None}
        there = TranscribedSplit(**alone, references=references, characters=characters)
        seen = Counter(c for text in there.right() for c in text)
        if name == "training":
            there.characters = characters = "".join(sorted(seen))
            notes.append(f"{len(characters)} characters: {printable(characters[: 3 * MOST_SHOWN])}")
        elif strange := {c: n for c, n in sorted(seen.items()) if c not in characters}:
            shown = printable(" ".join(list(strange)[:MOST_SHOWN]))
            notes.append(f"{sum(strange.values()):,} characters of the {name} transcripts are in no training transcript: {shown}")
        result.append(there)
    train, val, test = result
    return train, val, test
