"""Sounds as the data of a run: a source becomes train, val and test splits. They never depend on the run's seed."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import Waves
from ptmrun.data import modality
from ptmrun.data.audio import decode
from ptmrun.data.audio.batches import AudioBatches
from ptmrun.data.audio.processor import AudioProcessor
from ptmrun.data.audio.split import AudioSplit
from ptmrun.data.modality import Data, Picture
from ptmrun.data.sources import AudioPart, AudioSource, Clips
from ptmrun.data.sources.sounds import Broken
from ptmrun.data.splits import divide, no_classes, test_seen
from ptmrun.errors import UserError
from ptmrun.log_mel import LogMel
from ptmrun.storage import safe_read

RATES = (8000, 16000)  # of which dataset.rate=auto takes one: what most sounds have, or more
RATE = "sounds.json"  # where a run's rate stands
HIGHEST = 192_000
SURVEYED = 64  # sounds whose rate is looked at
SHOWN = 3  # held-out sounds in pictures


@dataclass(kw_only=True)
class Audio(Data):
    """rate: values a second; length: values of a sound at most."""

    noun = "sounds"
    baseline_phrases: ClassVar[dict[str, str]] = {"raw": "logistic regression on mean and deviation of the log-mel spectrum"}

    sounds: AudioSplit  # of the training split, labelled or not
    rate: int
    length: int

    @property
    def corpus(self) -> AudioSplit:
        return self.sounds

    @property
    def resolved_settings(self) -> dict[str, Any]:
        return {"dataset__rate": self.rate}

    @property
    def facts(self) -> dict[str, Any]:
        return {"rate": self.rate, "length": self.length, **self.train.facts}

    def __str__(self) -> str:
        seconds = int(self.sounds.lengths.sum()) / self.rate
        whole = f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds:.0f} s"
        return f"{whole} to train on at {self.rate} Hz" + (f", {len(self.classes)} classes" if self.classes else "")

    def processor(self, device: torch.device) -> AudioProcessor:
        return AudioProcessor(self.rate, self.length, device)

    def save_processor(self, folder: Path) -> None:
        """The rate, for runs that start from this one's weights."""
        folder.mkdir(parents=True)
        (folder / RATE).write_text(json.dumps({"rate": self.rate}))

    def batches(
        self, model: Any, split: Any, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Any
    ) -> AudioBatches:
        return AudioBatches(split, inputs, size, min(loop.accumulate, size), seed, purpose)

    def doubts(self, encoder: Callable[[], Any]) -> list[str]:
        return self.train.doubts(encoder)

    def raw(self, kind: str, train: AudioSplit) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and standard deviation of each band over a sound, standardised by the training sounds."""
        seen = self.summaries(train)
        mean, std = seen.mean(0), seen.std(0) + 1e-6
        return (seen - mean) / std, (self.test_summaries - mean) / std, 1.0

    @functools.cached_property
    def test_summaries(self) -> np.ndarray:
        return self.summaries(self.test)

    def summaries(self, split: AudioSplit) -> np.ndarray:
        """[N, 2 * bands]"""
        mel, inputs = LogMel(self.rate), self.processor(torch.device("cpu"))
        ordered, place = split.sorted_by_length()
        rows = [summary(*mel(inputs(waves))) for waves in ordered.all()]
        return torch.cat(rows)[place].numpy()

    def pictures_of_pretraining(
        self, cfg: Any, objective: Any, processor: Any, batch_of: Callable[[Any], dict[str, Any]], autocast: Callable[[], Any]
    ) -> list[Picture]:
        """The spectra of a few held-out sounds, and what of them the objective hides."""
        held = self.val.evenly_spaced(SHOWN)
        batch = batch_of(held)
        with autocast():
            hidden = objective.pictures(batch).get("hidden")
        frames, there = LogMel(self.rate)(Waves(*batch["inputs"]))
        spectra = [x[m].T.cpu() for x, m in zip(frames, there, strict=True)]
        counts = objective.encoder.count(batch["inputs"]).tolist()
        shares = None if hidden is None else [row[:n].cpu() for row, n in zip(hidden, counts, strict=True)]
        names = [held.name_of(held.rows[i].item()) for i in batch["ids"].tolist()]
        return [Picture("spectrograms", ("spectrograms", spectra, shares, names, self.rate // 100 / self.rate))]


def summary(frames: Tensor, mask: Tensor) -> Tensor:
    """Mean and standard deviation over the frames that are no padding: [B, t, F], [B, t] -> [B, 2 F]."""
    count, there = mask.sum(1, keepdim=True), mask[..., None]
    mean = torch.where(there, frames, 0).sum(1) / count
    square = torch.where(there, (frames - mean[:, None]).square(), 0).sum(1) / count
    return torch.cat([mean, square.sqrt()], 1)


def of_run(request: modality.LoadRequest) -> Audio:
    """The sounds of a run. Raises UserError for data that cannot be used."""
    options = request.cfg.dataset
    source: AudioSource = request.read(options)
    notes, unreadable, why = list(source.notes), list[str](), ""
    rate = rate_of(options.rate, source.parts["train"], request.folder, notes)
    length = round(options.seconds * rate)
    sets: dict[str, AudioSplit] = {}
    for name, part in source.parts.items():
        sets[name], bad, longer = as_split(part, f"{source.fingerprint}/{name}", rate, length, request.progress)
        why = why or (reason(part.clips, bad[0], rate) if bad else "")
        unreadable += [part.clips.label_of(i) for i in bad]
        if longer:
            whole = f"{longer:,} of {len(part.clips):,} sounds of the {name} split are longer than"
            notes.append(f"{whole} dataset.seconds={options.seconds:g} and are cut there")
    total = sum(len(part.clips) for part in source.parts.values())
    if len(unreadable) > options.max_unreadable * total:
        raise UserError(
            f"dataset.root={options.root}: {len(unreadable)} of {total} sounds cannot be decoded (the first: "
            f"{unreadable[0]}: {why}), "
            f"more than dataset.max_unreadable={options.max_unreadable:g}"
        )
    if unreadable:
        notes.append(f"{len(unreadable)} of {total} sounds cannot be decoded and are skipped (listed in unreadable.txt)")
    ids = no_classes(sets, "sounds")
    train, val, test, made = divide(sets, options, "sounds", notes)
    train, val, test = (replace(split, together=None) for split in (train, val, test))
    marks = [rate, length, *(x.rows.tolist() for x in (train, val, test))]
    marks += [x.groups.tolist() for x in (train, val, test) if x.groups is not None]
    seen, answered, classes = test_seen(train, val, test, "sounds", notes), (train, val, test), source.classes
    if request.problem.own_answers and request.cfg.stage != "pretrain":
        answered, classes, ids = request.problem.own_answers((train, val, test), request.cfg.downstream, notes), [], ""
    return Audio(
        train=answered[0],
        val=answered[1],
        test=answered[2],
        classes=classes,
        fingerprint=hashlib.sha256(json.dumps([source.fingerprint, *marks]).encode()).hexdigest(),
        notes=notes,
        test_seen=seen,
        no_classes=ids,
        created_splits={name: split.sample_names for name, split in made.items()},
        unreadable=unreadable,
        val_corpus=val,
        sounds=train,
        rate=rate,
        length=length,
    )


def rate_of(wanted: int | str, part: AudioPart, folder: Path | None, notes: list[str]) -> int:
    """Values a second: as wanted; of auto those that the run's weights were trained with, else the data's own."""
    known = safe_read.plain_json(folder / RATE) if folder else {}
    before = known.get("rate") if isinstance(known, dict) else None
    if folder and not (isinstance(before, int) and RATES[0] <= before <= HIGHEST):
        raise UserError(f"{folder / RATE}: holds no rate of sounds; refused")
    if wanted == "auto":
        return before or usual_rate(part)
    if before not in (None, wanted):
        notes.append(f"Warning: dataset.rate={wanted}: the weights were trained on sounds of {before} Hz")
    return int(wanted)


def usual_rate(part: AudioPart) -> int:
    """Of RATES, the highest that no more than half of the sounds are below."""
    places = np.unique(np.linspace(0, len(part.clips) - 1, SURVEYED).astype(int))
    known = sorted(rate for i in places if (rate := part.clips.rate_of(int(i))))
    if not known:
        raise UserError(f"no sound of the data can be decoded; the first is {part.clips.label_of(0)}")
    return max([rate for rate in RATES if rate <= known[len(known) // 2]], default=RATES[0])


def reason(clips: Clips, index: int, rate: int) -> str:
    """Why a sound cannot be decoded."""
    try:
        clips.wave(index, rate, rate)
    except Broken as error:
        return str(error)
    return "can be now"


def as_split(
    part: AudioPart, fingerprint: str, rate: int, length: int, progress: Callable[[str, int, int], None]
) -> tuple[AudioSplit, list[int], int]:
    """The split without what cannot be decoded, the rows of that, and how many sounds are cut."""
    clips = part.clips

    def decoding(done: int) -> None:
        progress("decoding", done, len(clips))

    values, lengths, contents = decode.decoded_once(clips, fingerprint, rate, length, decoding)
    stored, numbers = torch.from_numpy(lengths), torch.from_numpy(contents)
    whole = AudioSplit(
        values=values,
        firsts=stored.cumsum(0) - stored,
        all_lengths=stored.clamp(max=length),
        rows=torch.arange(len(clips)),
        labels=None if part.labels is None else torch.from_numpy(part.labels),
        contents=numbers,
        groups=part.groups,
        together=part.together,
        transcripts=part.transcripts,
        name_of=clips.label_of,
    )
    bad = torch.nonzero(stored == 0)[:, 0].tolist()
    return whole.subset(torch.nonzero(stored)[:, 0]), bad, int((stored > length).sum())
