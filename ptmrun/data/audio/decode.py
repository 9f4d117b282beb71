"""Sounds, decoded once into a memory-mapped file of the cache folder."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ptmrun.data.sources import Clips
from ptmrun.data.sources.sounds import Broken
from ptmrun.storage.content import number
from ptmrun.storage.files import cache_folder, new_entry

EVERY = 64  # sounds between two reports of progress


class Decoded(NamedTuple):
    """Sounds one after the other. lengths: values of each, one more than `most` where it is longer; contents: what only equal
    sounds share, 0 of those that cannot be decoded."""

    values: np.ndarray  # float32 [all of their values]
    lengths: np.ndarray  # int64 [N]
    contents: np.ndarray  # int64 [N]


def decoded_once(clips: Clips, fingerprint: str, rate: int, most: int, progress: Callable[[int], None]) -> Decoded:
    """All sounds at this rate, the first `most` + 1 values of each. They are stored by the data's fingerprint and what decodes;
    where the cache folder cannot be written, or is full, they are in memory."""
    key = hashlib.sha256(f"{fingerprint}/{rate}/{most}/{clips.decoder}".encode()).hexdigest()[:32]
    waves, index = cache_folder() / f"{key}.waves", cache_folder() / f"{key}.sounds.npy"
    if (known := loaded(waves, index, len(clips))) is not None:
        return known
    try:
        store(clips, rate, most, progress, waves, index)
        if (known := loaded(waves, index, len(clips))) is not None:
            return known
    except OSError:
        pass
    every = list(each(clips, rate, most, progress))
    return Decoded(np.concatenate(every), *described(every).T)


def each(clips: Clips, rate: int, most: int, progress: Callable[[int], None]) -> Iterator[np.ndarray]:
    """The values of each sound; none of those that cannot be decoded."""
    for i in range(len(clips)):
        try:
            yield clips.wave(i, rate, most + 1)
        except Broken:
            yield np.zeros(0, dtype=np.float32)
        if (i + 1) % EVERY == 0 or i + 1 == len(clips):
            progress(i + 1)


def described(waves: list[np.ndarray]) -> np.ndarray:
    """Length and content of each, int64 [N, 2]."""
    return np.array([(len(wave), number(wave.tobytes()) if len(wave) else 0) for wave in waves], dtype=np.int64)


def store(clips: Clips, rate: int, most: int, progress: Callable[[int], None], waves: Path, index: Path) -> None:
    """Writes both files, the index last. Raises OSError."""
    parts = [new_entry(waves), new_entry(index)]
    try:
        table = []
        with open(parts[0], "wb") as file:
            for wave in each(clips, rate, most, progress):
                file.write(wave.tobytes())
                table.append(described([wave]))
        with open(parts[1], "wb") as file:
            np.save(file, np.concatenate(table))
        os.replace(parts[0], waves)
        os.replace(parts[1], index)
    finally:
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def loaded(waves: Path, index: Path, count: int) -> Decoded | None:
    """What is stored; None where it is not there, or not whole."""
    try:
        table = np.load(index)
        total = int(table[:, 0].sum())
        if table.shape != (count, 2) or table.dtype != np.int64 or not total or waves.stat().st_size != 4 * total:
            return None
        return Decoded(np.memmap(waves, np.float32, "r", shape=(total,)), table[:, 0], table[:, 1])
    except (OSError, ValueError, EOFError, IndexError):
        return None
