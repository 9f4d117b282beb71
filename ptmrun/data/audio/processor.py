"""Sounds -> what an encoder of sounds takes."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.batch import AudioSpec, Waves
from ptmrun.data import modality
from ptmrun.data.audio.split import AudioSplit, of_waves, padded
from ptmrun.data.modality import Unreadable
from ptmrun.data.sources import sounds
from ptmrun.errors import UserError

NOISE = 1.0  # seconds of a sound of noise


class AudioProcessor(modality.Processor):
    """Sounds at `rate` values a second, the first `length` values of each -> with mean 0 and variance 1 over a sound, as
    transformers' Wav2Vec2FeatureExtractor does it; padding stays 0."""

    samples = Waves

    def __init__(self, rate: int, length: int, device: torch.device):
        self.rate, self.length, self.device = rate, length, device

    def __call__(self, samples: Waves) -> Waves:
        values, mask = samples.to(self.device)
        count = mask.sum(1, keepdim=True)
        centred = (values - values.sum(1, keepdim=True) / count) * mask
        return Waves(centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt(), mask)

    def read(self, raw: list[Any]) -> Waves:
        """Values [T] of one channel at this rate."""
        return padded([np.asarray(wave, dtype=np.float32)[: self.length] for wave in raw])

    def split(self, raw: list[Any]) -> AudioSplit:
        return of_waves([np.asarray(wave, dtype=np.float32)[: self.length] for wave in raw])

    def opened(self, raw: list[Any]) -> list[np.ndarray | Unreadable]:
        """Paths, or arrays [T] of one channel at this rate, -> values [T]."""
        if any(isinstance(x, str | os.PathLike) for x in raw):
            try:
                sounds.need("audio", "soundfile", "soxr")
            except UserError as error:
                return [Unreadable(error.args[0])] * len(raw)
        return [self.one(x) for x in raw]

    def one(self, raw: Any) -> np.ndarray | Unreadable:
        if not isinstance(raw, str | os.PathLike | np.ndarray | Tensor | list | tuple):
            return Unreadable(f"expected a path or an array of values, found {type(raw).__name__}")
        try:
            if isinstance(raw, str | os.PathLike):
                return sounds.read(raw, self.rate, self.length)
            values = np.asarray(raw, dtype=np.float32)
        except sounds.Broken as error:
            return Unreadable(str(error))
        except (TypeError, ValueError):
            return Unreadable("expected numbers")
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            return Unreadable(f"expected an array of finite values of one channel, found the shape {list(values.shape)}")
        return values[: self.length]

    def noise(self, count: int) -> Waves:
        values = torch.randn(count, min(self.length, round(NOISE * self.rate)), generator=rng.generator(0, "noise"))
        return Waves(values, torch.ones_like(values, dtype=torch.bool))

    @property
    def spec(self) -> AudioSpec:
        return AudioSpec(self.rate, self.length)

    @property
    def preprocessing(self) -> tuple[int]:
        return (self.rate,)
