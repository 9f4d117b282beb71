"""Scores over seeds, and whether one is better than another beyond the noise."""

import math
from typing import Any

import numpy as np


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value) and the values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def verdict(tuned: list[np.ndarray], scratch: list[np.ndarray]) -> dict[str, Any]:
    """Gain of `tuned` over `scratch` and its noise, from correctness [N] of every test sample, one array a seed.

    The noise is the half-width of a 95 % interval on the gain: the larger of the one from the seeds (Welch's t) and the one from
    the test samples (paired, normal).
    """
    from scipy import stats

    a, b = (np.array([x.mean() for x in group]) for group in (tuned, scratch))
    paired = np.mean(tuned, axis=0) - np.mean(scratch, axis=0)
    noise = 1.96 * paired.std(ddof=1) / math.sqrt(len(paired)) if len(paired) > 1 else 1.0
    if len(a) > 1 and len(b) > 1:
        va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
        if va + vb > 0:
            freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
            noise = max(noise, stats.t.ppf(0.975, freedom) * math.sqrt(va + vb))
    gain = float(a.mean() - b.mean())
    return {"gain_over_scratch": gain, "noise": float(noise), "helped": bool(gain > noise)}


def sentence(result: dict[str, Any]) -> str:
    """The verdict in words."""
    gain, noise = 100 * result["gain_over_scratch"], 100 * result["noise"]
    if result["helped"]:
        return f"Pretraining helped: {gain:+.1f} points over from scratch, beyond the noise of {noise:.1f}."
    if gain < -noise:
        return f"Pretraining hurt: {gain:+.1f} points against from scratch, beyond the noise of {noise:.1f}."
    return f"No difference that can be told from noise: {gain:+.1f} points against from scratch, noise {noise:.1f}."
