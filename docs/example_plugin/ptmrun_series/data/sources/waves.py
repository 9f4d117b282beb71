"""Waves of three shapes, drawn with a fixed seed."""

from typing import Any

import numpy as np

SHAPES = {
    "sine": lambda phase: np.sin(2 * np.pi * phase),
    "square": lambda phase: np.sign(np.sin(2 * np.pi * phase)),
    "saw": lambda phase: 2 * (phase % 1) - 1,
}


def read(options: Any) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Series float32 [N, T], labels [N] and the names of the classes."""
    draw = np.random.default_rng(0)
    labels = np.arange(options.count) % len(SHAPES)
    time = np.arange(options.length) / options.length
    pitch, start = draw.uniform(2, 6, (options.count, 1)), draw.uniform(0, 1, (options.count, 1))
    phases = pitch * time + start
    series = np.stack([list(SHAPES.values())[label](phase) for label, phase in zip(labels, phases, strict=True)])
    return (series + options.noise * draw.normal(size=series.shape)).astype(np.float32), labels, list(SHAPES)
