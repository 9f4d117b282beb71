"""Digits spoken by the many voices of espeak-ng, which comes inside the package espeakng-loader: no download, on any system."""

import ctypes
import hashlib
import json
import shutil
import tempfile
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ptmrun import rng
from ptmrun.data.sources import AudioPart, AudioSource, sounds

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD = 5  # of so many voices, the first two are held out: one to test, one to validate
SYNCHRONOUS, UTF8, RATE, PITCH = 2, 1, 1, 3  # of espeak-ng's speak_lib.h
SLOWEST, FASTEST = 130, 220  # words a minute
LOWEST, HIGHEST = 30, 70  # of a pitch from 0 to 100, where 50 is the voice's own
QUIETEST, LOUDEST = 0.02, 0.3  # of the noise, as a share of the voice's deviation
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """espeak-ng's library, newly loaded: what it says depends on its seed and on all that it has said before."""

    def __init__(self) -> None:
        import espeakng_loader

        with tempfile.NamedTemporaryFile(suffix=".so") as copy:  # the file itself would be the one that is loaded already
            shutil.copyfile(espeakng_loader.get_library_path(), copy.name)
            self.library = ctypes.CDLL(copy.name)
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
        self.library.espeak_ng_SetRandSeed(1)
        ctypes.CDLL(None).srand(1)  # of which it takes some too
        self.parts: list[np.ndarray] = []
        self.callback = Callback(self.take)
        self.library.espeak_SetSynthCallback(self.callback)

    def take(self, values: Any, count: int, events: Any) -> int:
        if values and count:
            self.parts.append(np.ctypeslib.as_array(values, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, words_a_minute: int, pitch: int) -> np.ndarray:
        """int16 [T], at `rate` values a second."""
        self.parts.clear()
        self.library.espeak_SetVoiceByName(voice.encode())
        self.library.espeak_SetParameter(RATE, words_a_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        data = text.encode()
        self.library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        return np.concatenate(self.parts)


def voices() -> list[str]:
    """Variants of the English voice, sorted."""
    import espeakng_loader

    return sorted(f"en+{path.name}" for path in (Path(espeakng_loader.get_data_path()) / "voices" / "!v").iterdir())


class Utterances:
    """(digits, voice, number) each; the number draws speed, pitch and noise."""

    def __init__(self, utterances: list[tuple[tuple[int, ...], str, int]]):
        from importlib import metadata

        self.utterances = utterances
        self.decoder = f"espeakng-loader {metadata.version('espeakng-loader')}"

    def __len__(self) -> int:
        return len(self.utterances)

    @cached_property
    def spoken(self) -> tuple[list[np.ndarray], int]:
        """All of them, int16 [T] each, always one after the other; and how many values they have a second."""
        speaker, waves = Speaker(), []
        for i, (digits, voice, _) in enumerate(self.utterances):
            draw = np.random.default_rng(rng.key(0, f"spoken_digits/{self.label_of(i)}"))
            speed, pitch = int(draw.integers(SLOWEST, FASTEST)), int(draw.integers(LOWEST, HIGHEST))
            waves.append(speaker.say(" ".join(WORDS[d] for d in digits), voice, speed, pitch))
        return waves, speaker.rate

    def wave(self, index: int, rate: int, most: int) -> np.ndarray:
        waves, own = self.spoken
        wave = sounds.resampled(waves[index].astype(np.float32) / 2**15, own, rate, most)
        draw = np.random.default_rng(rng.key(0, f"spoken_digits/noise/{self.label_of(index)}"))
        share = QUIETEST * (LOUDEST / QUIETEST) ** draw.uniform()
        return wave + (share * wave.std() * draw.normal(size=len(wave))).astype(np.float32)

    def rate_of(self, index: int) -> int:
        return 8000

    def label_of(self, index: int) -> str:
        digits, voice, number = self.utterances[index]
        return f"{''.join(map(str, digits))}-{voice.removeprefix('en+')}-{number}"


def read(options: Any) -> AudioSource:
    """`options`: digits, the most of an utterance; repeats, of utterances a voice for each digit. One digit alone is a class."""
    sounds.need("speech", "espeakng_loader", "soundfile", "soxr")
    every = voices()
    order = rng.permutation(0, "spoken_digits/voices", len(every)).tolist()
    sets: dict[str, list[tuple[tuple[int, ...], str, int]]] = {"train": [], "val": [], "test": []}
    for place, (voice, number, first) in enumerate(product([every[i] for i in order], range(options.repeats), range(len(WORDS)))):
        split = {0: "test", 1: "val"}.get(place // (options.repeats * len(WORDS)) % HELD, "train")
        draw = np.random.default_rng(rng.key(1, f"spoken_digits/{voice}/{first}", number))
        more = draw.integers(0, len(WORDS), int(draw.integers(0, options.digits))).tolist()
        sets[split].append(((first, *more), voice, number))
    alone = options.digits == 1
    parts = {
        name: AudioPart(
            Utterances(some),
            np.array([digits[0] for digits, _, _ in some]) if alone else None,
            [" ".join(WORDS[d] for d in digits) for digits, _, _ in some],
        )
        for name, some in sets.items()
    }
    fingerprint = hashlib.sha256(json.dumps([sets, Utterances([]).decoder]).encode()).hexdigest()
    held = f"{len(every)} voices of espeak-ng, one in {HELD} held out to test and one in {HELD} to validate"
    return AudioSource(parts, [str(i) for i in range(len(WORDS))] if alone else [], fingerprint, [held])
