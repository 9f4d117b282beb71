"""What pretraining was worth: against the same network from random weights, at the same compute and at that of fine-tuning alone.

better: above from scratch at equal compute, beyond the noise; equal: no difference beyond the noise; already_paid: below, but
above from scratch with the compute of fine-tuning alone, so that it pays where the pretraining is there already; worse: neither.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ptmrun.reports import significance

Outcome = Literal["better", "equal", "already_paid", "worse"]
NOISE_UNKNOWN = 1.0  # where nothing says how large it is, no difference is beyond it
LEAST = 20  # test samples, below which nothing does


@dataclass(frozen=True)
class Side:
    """A method's scores, one a repeat, and how right each test sample was in each, [N]."""

    values: list[float]
    samples: list[np.ndarray]


def of_run(tuned: Side, scratch: Side, short: Side, points: dict[float, list[float]], compute: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a run with one number of labels. short: from scratch with fine-tuning's own compute; points: compute ->
    scores from scratch; compute: `tuned`, `total` and whether that of the pretraining is `known`."""
    gain, gain_short = (float(np.mean(tuned.values) - np.mean(other.values)) for other in (scratch, short))
    parts = [
        (significance.of_seeds(tuned.values, other.values), significance.of_samples(tuned.samples, other.samples))
        for other in (scratch, short)
    ]
    noise, noise_short = (significance.together(*part) or NOISE_UNKNOWN for part in parts)
    if len(tuned.samples[0]) < LEAST:
        noise = noise_short = NOISE_UNKNOWN
    result = {
        "gain_over_scratch": gain,
        "noise": noise,
        "gain_over_short": gain_short,
        "noise_short": noise_short,
        "noise_of_samples": [part[1] for part in parts],
        "pretrainings": 1,
        "repeats": [len(tuned.values), len(scratch.values)],
        "compute": compute,
        "scratch_needs": reached_at(points, min(float(np.mean(tuned.values)), float(np.mean(scratch.values)))),
    }
    return result | decided(result)


def decided(result: dict[str, Any]) -> dict[str, Any]:
    gain, noise = result["gain_over_scratch"], result["noise"]
    outcome: Outcome = "equal"
    if gain > noise:
        outcome = "better"
    elif gain < -noise:
        outcome = "already_paid" if result["gain_over_short"] > result["noise_short"] else "worse"
    return {"outcome": outcome, "helped": outcome == "better"}


def reached_at(points: dict[float, list[float]], score: float) -> float | None:
    """The least compute with which training from scratch has this mean score, between two points of its curve on the logarithm;
    None where it never has."""
    before = None
    for flops, mean in [(flops, float(np.mean(values))) for flops, values in sorted(points.items())]:
        if mean >= score:
            if before is None:
                return flops
            share = (score - before[1]) / (mean - before[1])
            return before[0] * (flops / before[0]) ** share
        before = (flops, mean)
    return None


def of_runs(entries: list[dict[str, Any]], pretrainings: int) -> dict[str, Any] | None:
    """The verdict over runs that pretrained with other seeds, from their entries of results.json for one number of labels; None
    where one of them has none. The noise counts the pretrainings."""
    each = [entry["verdict"] for entry in entries if "outcome" in entry.get("verdict", {})]
    if not each or len(each) < len(entries):
        return None
    if len(each) == 1:
        return each[0]
    tuned = [entry["scores"]["tuned"]["mean"] for entry in entries]
    result: dict[str, Any] = {"pretrainings": pretrainings, "repeats": each[0]["repeats"], "compute": each[0]["compute"]}
    for place, (gain, noise) in enumerate((("gain_over_scratch", "noise"), ("gain_over_short", "noise_short"))):
        result[gain] = float(np.mean([v[gain] for v in each]))
        others = [score - v[gain] for score, v in zip(tuned, each, strict=True)]
        samples = [v["noise_of_samples"][place] for v in each if v["noise_of_samples"][place] is not None]
        of_samples = float(np.mean(samples)) if samples else None  # the runs share their test samples
        result[noise] = significance.together(significance.of_seeds(tuned, others), of_samples) or NOISE_UNKNOWN
    curves = [[(point["flops"], point["score"]["mean"]) for point in entry["curve"]] for entry in entries]
    points = {row[0][0]: [score for _, score in row] for row in zip(*curves, strict=False)}
    level = float(np.mean(tuned)) - max(0.0, result["gain_over_scratch"])  # the lower of both
    result["scratch_needs"] = reached_at(points, level)
    return result | decided(result)


def short(result: dict[str, Any]) -> str:
    """The verdict in a cell of a table."""
    gain, noise = 100 * result["gain_over_scratch"], 100 * result["noise"]
    word = {"better": "helped", "equal": "no difference", "already_paid": "pays where it is there already", "worse": "hurt"}
    but = "".join(f"; but {reservation}" for reservation in result.get("reservations", []))
    return f"{word[result['outcome']]}: {gain:+.1f}, noise {noise:.1f}{but}"


def sentence(result: dict[str, Any]) -> str:
    """The verdict in words."""
    gain, noise = 100 * result["gain_over_scratch"], 100 * result["noise"]
    if "outcome" not in result:
        old = "from scratch trained as briefly as the fine-tuning, of an older version: it says nothing about equal compute"
        return f"{gain:+.1f} points against {old}; noise {noise:.1f}."
    short, noise_short = 100 * result["gain_over_short"], 100 * result["noise_short"]
    at, basis = reference(result["compute"]), counted(result)
    alone = f"{short:+.1f} points over from scratch with the compute of fine-tuning alone"
    match result["outcome"]:
        case "better":
            return f"Pretraining helped: {gain:+.1f} points over from scratch {at}, beyond the noise of {noise:.1f} ({basis})."
        case "equal":
            told = f"No difference that can be told from noise: {gain:+.1f} points against from scratch {at}, noise {noise:.1f}"
            return f"{told} ({basis}). {reached(result)}"
        case "already_paid":
            told = f"Pretraining pays only where it is there already: {alone}, beyond the noise of {noise_short:.1f}, but"
            return f"{told} {gain:+.1f} {at}, beyond the noise of {noise:.1f} ({basis})."
        case _:
            told = f"Pretraining hurt: {gain:+.1f} points against from scratch {at}, beyond the noise of {noise:.1f} ({basis}),"
            return f"{told} and {alone} (noise {noise_short:.1f})."


def reference(compute: dict[str, Any]) -> str:
    """What from scratch was given."""
    if compute["known"]:
        return "at equal compute"
    times = compute["total"] / compute["tuned"]
    return f"with {times:.0f} times the compute of fine-tuning (that of the pretraining is not known)"


def counted(result: dict[str, Any]) -> str:
    """What the noise rests on."""
    tuned, scratch = result["repeats"]
    if result["pretrainings"] > 1:
        return f"{result['pretrainings']} pretrainings"
    if tuned == 1:
        return "one pretraining, one repeat: the noise of its labels is not known"
    return "one pretraining" if scratch > 1 else f"one pretraining, {tuned} repeats, one of them from scratch"


def reached(result: dict[str, Any]) -> str:
    """With how much compute from scratch has the score, or what it comes to."""
    compute, needs = result["compute"], result["scratch_needs"]
    if needs is None:
        return "From scratch gets there at the end only."
    times, share = needs / compute["tuned"], compute["total"] / needs
    if times <= 1.01:
        return "From scratch gets there with the compute of fine-tuning alone: pretraining saves nothing."
    less = f"with {share:.1f} times less compute" if share > 1.01 else "with all of it"
    return f"From scratch gets there {less}; fine-tuning what is pretrained already takes {times:.1f} times less than that."
