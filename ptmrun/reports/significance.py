"""Scores over seeds, and whether one is better than another beyond the noise."""

import math
from typing import Any

import numpy as np


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None for one value) and the values."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd, "values": values}


def of_seeds(a: list[float], b: list[float]) -> float | None:
    """Half-width of a 95 % interval on mean(a) - mean(b): Welch's t, or where one side has a single value Student's with the
    variance of the other. None where the seeds say nothing about it."""
    from scipy import stats

    several = [x for x in (a, b) if len(x) > 1]
    if not several:
        return None
    if len(several) == 1:
        [known] = several
        variance, freedom = float(np.var(known, ddof=1)) * (1 / len(a) + 1 / len(b)), float(len(known) - 1)
    else:
        va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
        variance = float(va + vb)
        freedom = float(variance**2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))) if variance else 1.0
    return float(stats.t.ppf(0.975, freedom) * math.sqrt(variance)) if variance else None


def of_samples(a: list[np.ndarray], b: list[np.ndarray]) -> float | None:
    """The same from the test samples (paired, normal), from the correctness [N] of every sample, one array a seed."""
    paired = np.mean(a, axis=0) - np.mean(b, axis=0)
    return float(1.96 * paired.std(ddof=1) / math.sqrt(len(paired))) if len(paired) > 1 else None


def together(*noises: float | None) -> float | None:
    """Half-width of the interval from independent sources of noise, those that are known; None where none is."""
    known = [n for n in noises if n is not None]
    return math.hypot(*known) if known else None
