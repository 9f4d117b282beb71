"""The verdict on pretraining: its noise, its outcomes and its words, against numbers that were worked out by hand."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from ptmrun.reports import phrases, significance, verdict
from ptmrun.reports.verdict import Side
from ptmrun.storage import tensor_files

KNOWN = {"tuned": 10.0, "total": 80.0, "known": True}


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


def one_repeat(right: np.ndarray) -> Side:
    return Side([float(right.mean())], [right])


@pytest.mark.parametrize(
    ("gained", "lost", "gain", "noise", "outcome"),
    [
        (10, 3, 0.07, 0.06967, "better"),
        (30, 10, 0.20, 0.11819, "better"),
        (10, 4, 0.06, 0.07275, "equal"),
        (20, 20, 0.0, 0.12459, "equal"),
        (4, 10, -0.06, 0.07275, "equal"),
        (3, 10, -0.07, 0.06967, "worse"),
        (10, 30, -0.20, 0.11819, "worse"),
    ],
)
def test_one_repeat(gained, lost, gain, noise, outcome):
    """Only the test samples tell of the noise: 7 of 100 are beyond it where 13 differ, 6 of 100 within where 14 do."""
    tuned, scratch = map(one_repeat, outcomes(gained, lost))
    found = verdict.of_run(tuned, scratch, tuned, {80.0: scratch.values}, KNOWN)  # as good as from scratch with little compute
    assert found["gain_over_scratch"] == pytest.approx(gain, abs=1e-12)
    assert found["noise"] == pytest.approx(half_width(gained, lost), rel=1e-9)
    assert found["noise"] == pytest.approx(noise, abs=1e-5)
    assert (found["outcome"], found["helped"]) == (outcome, outcome == "better")


def test_what_pays_only_where_it_is_there_already():
    """Below from scratch at equal compute by 20 points, above from scratch with little compute by 30, beyond the noise of
    both."""
    tuned, scratch = map(one_repeat, outcomes(10, 30))
    short = one_repeat(tuned.samples[0] & (np.arange(100) >= 60))
    assert tuned.values[0] - short.values[0] > 0.2
    found = verdict.of_run(tuned, scratch, short, {80.0: scratch.values}, KNOWN)
    assert found["outcome"] == "already_paid"
    assert not found["helped"]


def said(outcome: str, **changes) -> str:
    result = {
        "gain_over_scratch": 0.0312,
        "noise": 0.02,
        "gain_over_short": 0.123,
        "noise_short": 0.03,
        "pretrainings": 1,
        "repeats": [3, 3],
        "compute": KNOWN,
        "scratch_needs": 20.0,
        "outcome": outcome,
        "helped": outcome == "better",
    }
    return verdict.sentence(result | changes)


def test_each_outcome_has_its_sentence():
    assert said("better") == (
        "Pretraining helped: +3.1 points over from scratch at equal compute, beyond the noise of 2.0 (one pretraining)."
    )
    assert said("equal", gain_over_scratch=-0.01) == (
        "No difference that can be told from noise: -1.0 points against from scratch at equal compute, noise 2.0 (one "
        "pretraining). From scratch gets there with 4.0 times less compute; fine-tuning what is pretrained already takes 2.0 "
        "times less than that."
    )
    assert said("already_paid", gain_over_scratch=-0.05) == (
        "Pretraining pays only where it is there already: +12.3 points over from scratch with the compute of fine-tuning alone, "
        "beyond the noise of 3.0, but -5.0 at equal compute, beyond the noise of 2.0 (one pretraining)."
    )
    assert said("worse", gain_over_scratch=-0.05, gain_over_short=0.01) == (
        "Pretraining hurt: -5.0 points against from scratch at equal compute, beyond the noise of 2.0 (one pretraining), "
        "and +1.0 points over from scratch with the compute of fine-tuning alone (noise 3.0)."
    )


def test_what_the_noise_rests_on_is_said():
    assert said("better", pretrainings=3).endswith("(3 pretrainings).")
    assert said("better", repeats=[3, 1]).endswith("(one pretraining, 3 repeats, one of them from scratch).")
    assert said("better", repeats=[1, 1]).endswith("(one pretraining, one repeat: the noise of its labels is not known).")


def test_compute_that_is_not_known_is_said():
    unknown = {"tuned": 10.0, "total": 100.0, "known": False}
    at = "with 10 times the compute of fine-tuning (that of the pretraining is not known)"
    assert f"over from scratch {at}, beyond" in said("better", compute=unknown)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (10.0, "From scratch gets there with the compute of fine-tuning alone: pretraining saves nothing."),
        (80.0, "From scratch gets there with all of it; fine-tuning what is pretrained already takes 8.0 times less than that."),
        (None, "From scratch gets there at the end only."),
    ],
)
def test_how_far_from_scratch_had_to_go(needs, words):
    assert said("equal", scratch_needs=needs).endswith(words)


def test_the_compute_that_from_scratch_needs_is_read_from_its_curve():
    """Between two points on the logarithm of the compute: halfway in score from 20 to 40 is 20 * sqrt(2)."""
    points = {40.0: [0.8, 0.9], 10.0: [0.5, 0.6], 20.0: [0.7, 0.7], 80.0: [0.95, 0.95]}
    assert verdict.reached_at(points, 0.5) == 10
    assert verdict.reached_at(points, 0.7) == pytest.approx(20)
    assert verdict.reached_at(points, 0.775) == pytest.approx(20 * 2**0.5)
    assert verdict.reached_at(points, 0.96) is None


def test_a_verdict_of_an_older_version_claims_nothing_at_equal_compute():
    old = {"gain_over_scratch": 0.12, "noise": 0.02, "helped": True}
    assert verdict.sentence(old).startswith("+12.0 points against from scratch trained as briefly as the fine-tuning")
    assert "equal compute" in verdict.sentence(old)
    entry = {"labels_per_class": 10, "scores": {}, "verdict": old}
    assert "as briefly as" in phrases.methods({"by_labels": [entry]})["scratch"]
    assert "equal compute" in phrases.methods({"by_labels": [entry | {"curve": []}]})["scratch"]


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
    assert significance.of_seeds([0.7], [0.5]) is None
    assert significance.of_seeds([0.7, 0.7], [0.5, 0.5]) is None, "scores that do not vary tell nothing"


def test_noise_of_a_single_repeat_is_that_of_the_other_side():
    """Three scores with variance 0.01 against one: standard error 0.1 * sqrt(4 / 3), two degrees of freedom, 4.30265."""
    expected = 4.30265 * 0.1 * math.sqrt(4 / 3)
    assert significance.of_seeds([0.6, 0.7, 0.8], [0.5]) == pytest.approx(expected, rel=1e-5)
    assert significance.of_seeds([0.5], [0.6, 0.7, 0.8]) == pytest.approx(expected, rel=1e-5)


def test_both_sources_of_noise_count():
    """They are independent: their squares add up."""
    same, wide = outcomes(1, 1), outcomes(40, 30)
    found = verdict.of_run(Side([0.7, 0.9], [same[0]] * 2), Side([0.5, 0.5], [same[1]] * 2), Side([0.5], [same[1]]), {}, KNOWN)
    assert found["noise"] == pytest.approx(math.hypot(1.27062, half_width(1, 1)), abs=1e-5)
    assert found["outcome"] == "equal", "30 points are far beyond the noise of the samples alone"
    scratch = Side([0.50, 0.51], [wide[1]] * 2)
    found = verdict.of_run(Side([0.60, 0.61], [wide[0]] * 2), scratch, scratch, {}, KNOWN)
    seeds = 4.30265 * 0.005 * math.sqrt(2)  # two degrees of freedom, variance 0.00005 / 2 of each mean
    assert found["noise"] == pytest.approx(math.hypot(seeds, half_width(40, 30)), rel=1e-5)
    assert found["outcome"] == "equal"


def test_without_any_noise_known_nothing_is_claimed():
    tuned, scratch = one_repeat(np.array([True])), one_repeat(np.array([False]))
    found = verdict.of_run(tuned, scratch, scratch, {}, KNOWN)
    assert (found["gain_over_scratch"], found["noise"], found["outcome"]) == (1.0, 1.0, "equal")


def test_a_handful_of_test_samples_makes_no_verdict():
    tuned, scratch = one_repeat(np.ones(19)), one_repeat(np.arange(19) % 5 == 0)
    assert verdict.of_run(tuned, scratch, scratch, {}, KNOWN)["noise"] == 1.0
    assert "the test split has 19 samples, too few" in phrases.warnings({"n_test": 19})[0]
    assert "one of them is 5 points" in phrases.warnings({"n_test": 19})[0]
    tuned, scratch = one_repeat(np.ones(20)), one_repeat(np.arange(20) % 5 == 0)
    assert verdict.of_run(tuned, scratch, scratch, {}, KNOWN)["outcome"] == "better"
    assert phrases.warnings({"n_test": 20}) == []


def entry_of(tuned: float, gain: float, short: float, samples: float, curve: list[float]) -> dict:
    """Of a run, as results.json has it."""
    points = [{"flops": 10.0 * (i + 1), "steps": i, "score": {"mean": x}, "val_scores": []} for i, x in enumerate(curve, start=0)]
    about = {"gain_over_scratch": gain, "noise": 9.0, "gain_over_short": short, "noise_short": 9.0, "outcome": "equal"}
    about |= {
        "noise_of_samples": [samples, samples],
        "pretrainings": 1,
        "repeats": [3, 1],
        "compute": KNOWN,
        "scratch_needs": None,
    }
    return {"labels_per_class": 10, "scores": {"tuned": {"mean": tuned}}, "curve": points, "verdict": about}


def test_the_verdict_over_several_pretrainings():
    """Its noise is that of the runs' means, and of the test samples that they share."""
    tuned, gains = [0.90, 0.92, 0.94], [0.05, 0.04, 0.06]
    entries = [entry_of(t, g, 0.2, 0.01, [0.6, 0.88, 0.9]) for t, g in zip(tuned, gains, strict=True)]
    found = verdict.of_runs(entries, 3)
    others = [t - g for t, g in zip(tuned, gains, strict=True)]
    interval = stats.ttest_ind(tuned, others, equal_var=False).confidence_interval()
    assert found["gain_over_scratch"] == pytest.approx(0.05)
    assert found["noise"] == pytest.approx(math.hypot((interval.high - interval.low) / 2, 0.01))
    assert 0.04 < found["noise"] < 0.05
    assert found["outcome"] == "better"
    assert found["pretrainings"] == 3
    assert found["scratch_needs"] == pytest.approx(10 * 2 ** (0.27 / 0.28)), "for 0.87, what it comes to"
    assert verdict.of_runs(entries[:1], 1) is entries[0]["verdict"]
    assert verdict.of_runs([*entries, {"labels_per_class": 10, "scores": {}}], 4) is None


def test_a_floor_that_wins_is_named_first():
    words = phrases.methods({"by_labels": [{"curve": []}]})
    scores = {"tuned": 0.8, "chance": 0.1, "raw": 0.5, "raw_svm": 0.6, "random_frozen": 0.6, "frozen": 0.7, "scratch": 0.9}

    def told(**changed):
        entry = {"labels_per_class": 10, "scores": {k: {"mean": v} for k, v in (scores | changed).items()}}
        return [
            *phrases.floors_that_win(entry, words, "labels per class"),
            *phrases.conclusions(entry, words, "labels per class"),
        ]

    assert told() == [], "`scratch` is what the verdict is about"
    for kind in ("raw", "raw_svm", "random_frozen"):
        assert told(**{kind: 0.8}) == [
            f"With 10 labels per class a floor wins: {words[kind]} has 0.800 against 0.800 of fine-tuning."
        ]
    assert told(raw=0.81, raw_svm=0.82) == [
        f"With 10 labels per class a floor wins: {words['raw_svm']} has 0.820 against 0.800 of fine-tuning."
    ]
    assert told(frozen=0.8) == [f"But {words['frozen']} does as well or better: 0.800 against 0.800."]
    assert told(scratch=0.1) == [
        f"But {words['scratch']} has learned nothing: 0.100, where {words['chance']} has 0.100; with more steps or labels it may "
        "be a baseline."
    ]


def test_what_a_verdict_in_a_table_is_to_be_read_with():
    def entry(**scores):
        return {"scores": {k: {"mean": v} for k, v in scores.items()}}

    sound, weak = entry(tuned=0.5, chance=0.1, raw=0.4, scratch=0.3), entry(tuned=0.5, chance=0.1, raw=0.6, scratch=0.1)
    assert phrases.reservations([sound]) == phrases.reservations([sound, weak]) == []
    assert phrases.reservations([weak, weak]) == ["a floor wins", "from scratch learned nothing"]
    result = {"gain_over_scratch": 0.4, "noise": 0.06, "outcome": "better", "reservations": phrases.reservations([weak])}
    assert verdict.short(result) == "helped: +40.0, noise 6.0; but a floor wins; but from scratch learned nothing"


def test_the_verdict_of_a_run_follows_from_its_saved_predictions(done_run):
    """From the logits in checkpoints/logits and the labels in predictions.parquet, with scipy's numbers."""
    entry = json.loads((done_run / "results.json").read_text())["by_labels"][0]
    rows = pq.read_table(done_run / "predictions.parquet").to_pydict()
    names = sorted(set(rows["label"]))
    labels = np.array([names.index(name) for name in rows["label"][:359]])

    def right(*files):
        folder = done_run / "checkpoints/logits"
        return np.array(
            [tensor_files.load(folder / f"{f}.safetensors")[0]["logits"].numpy().argmax(1) == labels for f in files],
            dtype=float,
        )

    tuned = right("5-tuned-0", "5-tuned-1")
    curve = {point["steps"]: right(f"5-scratch-0-{point['steps']}") for point in entry["curve"]}
    judged = {
        steps: tensor_files.load(done_run / f"checkpoints/logits/5-scratch-0-{steps}.safetensors")[1]["val_score"]
        for steps in curve
    }
    found = entry["verdict"]
    [chosen] = found["chosen_steps"]
    assert judged[chosen] == max(judged.values()), "the validation split chooses, never the test split"
    assert [point["val_scores"] for point in entry["curve"]] == [[score] for score in judged.values()]
    assert [point["score"]["mean"] for point in entry["curve"]] == pytest.approx([x.mean() for x in curve.values()])
    differences = (tuned.mean(0) - curve[chosen])[0]
    seeds = stats.t.ppf(0.975, 1) * math.sqrt(tuned.mean(1).var(ddof=1) * (1 / 2 + 1))
    assert found["gain_over_scratch"] == pytest.approx(differences.mean())
    assert found["noise"] == pytest.approx(math.hypot(seeds, 1.96 * stats.sem(differences)))
    assert entry["scores"]["scratch"]["values"] == pytest.approx(curve[chosen].mean(1).tolist())
    short = min(
        curve,
        key=lambda steps: abs(
            steps * entry["curve"][0]["flops"] / entry["curve"][0]["steps"] - entry["compute"]["tuned"]["flops"]
        ),
    )
    assert found["gain_over_short"] == pytest.approx(tuned.mean() - curve[short].mean())
