"""The verdict on pretraining: its noise, its threshold and its words, against numbers that were worked out by hand."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from ptmrun.reports import phrases, significance
from ptmrun.storage import tensor_files


def outcomes(gained: int, lost: int, count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two models on `count` samples, which agree on all but these: the first is right on `gained` samples where
    the second is wrong, and wrong on `lost` others where it is right."""
    a, b = np.arange(count) % 2 == 0, np.arange(count) % 2 == 0
    a[:gained], b[:gained] = True, False
    a[-lost:], b[-lost:] = False, True
    return a, b


def half_width(gained: int, lost: int, count: int = 100) -> float:
    """1.96 standard errors of the mean of so many +1 and -1 among zeros (McNemar's counts)."""
    variance = (gained + lost - (gained - lost) ** 2 / count) / (count - 1)
    return 1.96 * math.sqrt(variance / count)


@pytest.mark.parametrize(
    ("gained", "lost", "gain", "noise", "words"),
    [
        (10, 3, 0.07, 0.06967, "Pretraining helped: +7.0 points over from scratch, beyond the noise of 7.0."),
        (30, 10, 0.20, 0.11819, "Pretraining helped: +20.0 points over from scratch, beyond the noise of 11.8."),
        (10, 4, 0.06, 0.07275, "No difference that can be told from noise: +6.0 points against from scratch, noise 7.3."),
        (20, 20, 0.0, 0.12459, "No difference that can be told from noise: +0.0 points against from scratch, noise 12.5."),
        (4, 10, -0.06, 0.07275, "No difference that can be told from noise: -6.0 points against from scratch, noise 7.3."),
        (3, 10, -0.07, 0.06967, "Pretraining hurt: -7.0 points against from scratch, beyond the noise of 7.0."),
        (10, 30, -0.20, 0.11819, "Pretraining hurt: -20.0 points against from scratch, beyond the noise of 11.8."),
    ],
)
def test_one_repeat(gained, lost, gain, noise, words):
    """Only the test samples tell of the noise: 7 of 100 are beyond it where 13 differ, 6 of 100 within where 14 do."""
    a, b = outcomes(gained, lost)
    found = significance.verdict([a.mean()], [b.mean()], [a], [b])
    assert found["gain_over_scratch"] == pytest.approx(gain, abs=1e-12)
    assert found["noise"] == pytest.approx(half_width(gained, lost), rel=1e-9)
    assert found["noise"] == pytest.approx(noise, abs=1e-5)
    assert found["helped"] is words.startswith("Pretraining helped")
    assert significance.sentence(found) == words


def test_noise_of_samples_is_that_of_their_differences():
    """Differences 1, 0, 1, -1: mean 1/4, squares about it 11/4, variance 11/12."""
    a, b = np.array([True, True, True, False]), np.array([False, True, False, True])
    assert significance.of_samples([a], [b]) == pytest.approx(1.96 * math.sqrt(11 / 12 / 4), rel=1e-12)
    assert significance.of_samples([a], [a]) == 0, "the same answers have no noise, however many are wrong"
    assert significance.of_samples([a[:1]], [b[:1]]) is None


def test_noise_of_samples_takes_the_mean_of_the_repeats_first():
    """Differences of the means: 1/2, 1, 0, -1/2; mean 1/4, squares about it 1/16 + 9/16 + 1/16 + 9/16 = 5/4."""
    a = [np.array([1, 1, 0, 0]), np.array([0, 1, 1, 0])]
    b = [np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0])]
    assert significance.of_samples(a, b) == pytest.approx(1.96 * math.sqrt(5 / 4 / 3 / 4), rel=1e-12)


def test_noise_of_two_repeats():
    """Scores 0.7 and 0.9 against twice 0.5: standard error 0.1 with one degree of freedom, whose 97.5 % point is 12.706."""
    assert significance.of_seeds([0.7, 0.9], [0.5, 0.5]) == pytest.approx(1.27062, abs=1e-5)
    assert significance.of_seeds([0.7, 0.9], [0.5]) is None
    assert significance.of_seeds([0.7, 0.7], [0.5, 0.5]) is None, "scores that do not vary tell nothing"


def test_the_larger_noise_counts():
    same = outcomes(1, 1)
    wide = outcomes(40, 30)
    found = significance.verdict([0.7, 0.9], [0.5, 0.5], [same[0]] * 2, [same[1]] * 2)
    assert found["noise"] == pytest.approx(1.27062, abs=1e-5), "that of the seeds"
    assert not found["helped"], "30 points are far beyond the noise of the samples alone"
    found = significance.verdict([0.60, 0.61], [0.50, 0.51], [wide[0]] * 2, [wide[1]] * 2)
    seeds = 4.30265 * 0.005 * math.sqrt(2)  # two degrees of freedom, variance 0.00005 / 2 of each mean
    assert significance.of_seeds([0.60, 0.61], [0.50, 0.51]) == pytest.approx(seeds, rel=1e-5)
    assert found["noise"] == pytest.approx(half_width(40, 30), rel=1e-9), "that of the samples"
    assert found["noise"] > 0.1 > seeds
    assert not found["helped"]


def test_without_any_noise_known_nothing_is_claimed():
    found = significance.verdict([1.0], [0.0], [np.array([True])], [np.array([False])])
    assert found == {"gain_over_scratch": 1.0, "noise": 1.0, "helped": False}
    assert significance.sentence(found).startswith("No difference")


def test_a_baseline_that_does_as_well_is_named():
    words = phrases.methods(2, {})
    scores = {"tuned": 0.8, "chance": 0.1, "raw": 0.5, "random_frozen": 0.6, "frozen": 0.7, "scratch": 0.9, "scratch_long": 0.75}

    def said(**changed):
        entry = {"labels_per_class": 10, "scores": {k: {"mean": v} for k, v in (scores | changed).items()}}
        return phrases.conclusions(entry, words, "labels per class")

    assert said() == [], "`scratch` is what the verdict is about"
    for kind in ("raw", "random_frozen", "frozen", "scratch_long"):
        assert said(**{kind: 0.8}) == [f"But {words[kind]} does as well or better: 0.800 against 0.800."]
    assert said(raw=0.81, scratch_long=0.82) == [f"But {words['scratch_long']} does as well or better: 0.820 against 0.800."]
    assert words["scratch_long"] == "the same, trained 2 times as long"


def test_the_verdict_of_a_run_follows_from_its_saved_predictions(done_run):
    """From the logits in checkpoints/logits and the labels in predictions.parquet, with scipy's interval."""
    entry = json.loads((done_run / "results.json").read_text())["by_labels"][0]
    rows = pq.read_table(done_run / "predictions.parquet").to_pydict()
    names = sorted(set(rows["label"]))
    labels = np.array([names.index(name) for name in rows["label"][:359]])

    def right(kind):
        files = [done_run / f"checkpoints/logits/5-{kind}-{i}.safetensors" for i in range(2)]
        return np.array([tensor_files.load(f)[0]["logits"].numpy().argmax(1) == labels for f in files], dtype=float)

    tuned, scratch = right("tuned"), right("scratch")
    interval = stats.ttest_ind(tuned.mean(1), scratch.mean(1), equal_var=False).confidence_interval()
    differences = (tuned - scratch).mean(0)
    noise = max((interval.high - interval.low) / 2, 1.96 * stats.sem(differences))
    found = entry["verdict"]
    assert found["gain_over_scratch"] == pytest.approx(differences.mean())
    assert found["noise"] == pytest.approx(noise)
    assert found["helped"] == (differences.mean() > noise)
    assert entry["scores"]["scratch_long"]["values"] == pytest.approx(right("scratch_long").mean(1).tolist())
