"""Series of numbers as the data of a run."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.data import modality
from ptmrun.data.epochs import Epochs
from ptmrun.data.splits import divide


class SeriesSpec(NamedTuple):
    length: int


@dataclass
class Series(modality.Split):
    """values: of the whole source, float32 [N, T]; rows: which of them this split has."""

    values: Tensor
    rows: Tensor
    labels: Tensor
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Tensor) -> "Series":
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Tensor]:
        return (self.values[self.rows[indices]] for indices in index_lists)


class Batches(Epochs):
    def micro(self, samples: Tensor, ids: Tensor, rows: rng.BatchRandom) -> dict[str, Any]:
        place = slice(rows.start, rows.stop)
        inputs = self.inputs(samples[place])
        labels = self.split.labels[ids[place]].to(inputs.device)
        return {"inputs": inputs, "labels": labels, "ids": ids[place], "rows": rows}


class SeriesProcessor(modality.Processor):
    """Series float32 [B, T] -> [B, 1, T] with mean 0 and standard deviation 1 over the training series."""

    def __init__(self, length: int, mean: float, std: float, device: torch.device):
        self.length, self.mean, self.std, self.device = length, mean, std, device

    def __call__(self, samples: Tensor) -> Tensor:
        return ((samples - self.mean) / self.std)[:, None].to(self.device)

    def read(self, raw: list[Any]) -> Tensor:
        return torch.tensor(np.array(raw), dtype=torch.float32)

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, self.length, generator=rng.generator(0, "noise"))

    @property
    def spec(self) -> SeriesSpec:
        return SeriesSpec(self.length)

    @property
    def preprocessing(self) -> tuple[float, float]:
        return self.mean, self.std


@dataclass(kw_only=True)
class SeriesData(modality.Data):
    noun = "series"

    mean: float
    std: float

    def __str__(self) -> str:
        return f"{self.train.values.shape[1]} numbers each, {len(self.classes)} classes"

    @property
    def facts(self) -> dict[str, Any]:
        return {"length": self.train.values.shape[1], "mean": [self.mean], "std": [self.std]}

    def processor(self, device: torch.device) -> SeriesProcessor:
        return SeriesProcessor(self.train.values.shape[1], self.mean, self.std, device)

    def batches(self, model: Any, split: Any, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Any) -> Batches:
        return Batches(split, inputs, size, min(loop.accumulate, size), seed, purpose)

    def raw(self, kind: str, train: Series) -> tuple[np.ndarray, np.ndarray, float]:
        return train.values[train.rows].numpy(), self.test.values[self.test.rows].numpy(), 1.0


def load(request: modality.LoadRequest) -> SeriesData:
    values, labels, classes = request.read(request.cfg.dataset)
    whole = Series(torch.from_numpy(values), torch.arange(len(values)), torch.from_numpy(labels))
    notes: list[str] = []
    train, val, test, made = divide({"train": whole}, request.cfg.dataset, "series", notes)
    chosen = train.values[train.rows]
    return SeriesData(
        train=train,
        val=val,
        test=test,
        classes=classes,
        fingerprint=hashlib.sha256(values.tobytes() + labels.tobytes()).hexdigest(),
        notes=notes,
        created_splits={name: [str(row) for row in split.rows.tolist()] for name, split in made.items()},
        mean=float(chosen.mean()),
        std=float(chosen.std()),
    )


def processor(cfg: Any, facts: dict[str, Any], folder: Path | None, family: Any, device: torch.device) -> SeriesProcessor:
    return SeriesProcessor(facts["length"], facts["mean"][0], facts["std"][0], device)


MODALITY = modality.Modality(load=load, processor=processor)
