"""Scores over seeds, and whether one is better than another beyond the noise."""

import math
from typing import Any

import numpy as np


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value) and the values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def of_seeds(a: list[float], b: list[float]) -> float | None:
    """Half-width of a 95 % interval on mean(a) - mean(b) (Welch's t); None where the seeds say nothing about it."""
    from scipy import stats

    if len(a) < 2 or len(b) < 2:
        return None
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    if va + vb == 0:
        return None
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(va + vb))


def of_samples(a: list[np.ndarray], b: list[np.ndarray]) -> float | None:
    """The same from the test samples (paired, normal), from the correctness [N] of every sample, one array a seed."""
    paired = np.mean(a, axis=0) - np.mean(b, axis=0)
    return float(1.96 * paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else None


def verdict(
    tuned: list[float], scratch: list[float], samples: list[np.ndarray], scratch_samples: list[np.ndarray]
) -> dict[str, Any]:
    """Gain of `tuned` over `scratch`, scores a seed, and its noise: the larger of that of the seeds and that of the test samples,
    whose own scores [N] are given for every seed."""
    gain = float(np.mean(tuned) - np.mean(scratch))
    known = [n for n in (of_seeds(tuned, scratch), of_samples(samples, scratch_samples)) if n is not None]
    noise = max(known, default=1.0)
    return {"gain_over_scratch": gain, "noise": noise, "helped": bool(gain > noise)}


def sentence(result: dict[str, Any]) -> str:
    """The verdict in words."""
    gain, noise = 100 * result["gain_over_scratch"], 100 * result["noise"]
    if result["helped"]:
        return f"Pretraining helped: {gain:+.1f} points over from scratch, beyond the noise of {noise:.1f}."
    if gain < -noise:
        return f"Pretraining hurt: {gain:+.1f} points against from scratch, beyond the noise of {noise:.1f}."
    return f"No difference that can be told from noise: {gain:+.1f} points against from scratch, noise {noise:.1f}."
