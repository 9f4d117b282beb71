"""ptmrun verify: certificates are read strictly, compared rightly, and those in conf/experiment hold."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from ptmrun.commands import verify
from ptmrun.compose import compose
from ptmrun.config import choices, parsing
from ptmrun.runs.folder import Run

GOOD = {
    "expected": {"labels_5": {"score": 0.5, "tolerance": 0.2}},
    "seeds": [0],
    "seconds": 10,
    "machine": {"cpu": "abacus", "cores": 1, "torch": "0.1"},
}


def labels_5(**entry):
    return {"expected": {"labels_5": entry}}


WRONG = {
    "a misspelt key": ({"second": 3}, "certificate.second: no such key"),
    "no such score": (
        {"expected": {"labels_0": {"score": 0.5, "tolerance": 0.1}}},
        "certificate.expected.labels_0: expected labels_",
    ),
    "no score": ({"expected": {}}, "certificate.expected: expected"),
    "a score above 1": (
        {"expected": {"labels_5": {"score": 5, "tolerance": 0.1}}},
        "labels_5.score: expected less than or equal to 1",
    ),
    "no tolerance": (labels_5(score=0.5), "certificate.expected.labels_5.tolerance: missing"),
    "seeds as text": ({"seeds": ["one"]}, "certificate.seeds.0: expected integer"),
    "quick without overrides": ({"quick": GOOD}, "certificate.quick.overrides: missing"),
    "a list": ([1], "certificate: expected dictionary"),
}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """experiment(certificate) writes conf/experiment/mine.yaml into a copy of conf."""
    shutil.copytree(choices.CONF, tmp_path / "conf")
    monkeypatch.setattr(choices, "CONF", tmp_path / "conf")
    monkeypatch.setattr(choices, "files", functools.cache(choices.files.__wrapped__))

    def write(certificate):
        settings = {"seed": 1} | ({"certificate": certificate} if certificate else {})
        text = f"# @package _global_\n# An experiment\n{json.dumps(settings)}\n"  # YAML without aliases
        (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text)

    return write


@pytest.mark.parametrize("case", WRONG)
def test_a_malformed_certificate_is_one_line(ptmrun, experiment, case):
    change, expected = WRONG[case]
    experiment(GOOD | change if isinstance(change, dict) else change)
    code, out, err = ptmrun("verify", "mine")
    assert (code, out) == (2, "")
    assert err.startswith("ptmrun: mine.yaml: ")
    assert expected in err
    assert len(err.splitlines()) == 1, err


def test_nothing_to_verify_is_one_line(ptmrun, experiment):
    experiment(None)
    assert ptmrun("verify", "mine") == (2, "", "ptmrun: mine: its file has no certificate; nothing to verify\n")
    experiment(GOOD)
    assert ptmrun("verify", "mine", "--quick") == (
        2,
        "",
        "ptmrun: mine: its file has no certificate for --quick; nothing to verify\n",
    )
    assert ptmrun("verify", "mime") == (2, "", "ptmrun: mime: no such experiment (did you mean mine?)\n")


def test_a_certificate_is_no_part_of_the_config(ptmrun, experiment):
    experiment(GOOD)
    assert parsing.plain(compose(["experiment=mine"])) == parsing.plain(compose(["seed=1"]))
    code, _, err = ptmrun("experiment=mine", "certificate.seconds=1")
    assert code == 2
    assert "certificate: no such key" in err


@pytest.mark.parametrize(("score", "code"), [(0.55, 0), (0.1, 1)])
def test_drift_is_told_and_exits_1(ptmrun, experiment, monkeypatch, done_run, score, code):
    """Two seeds with scores 0.2 apart, around 0.5."""
    results = json.loads((done_run / "results.json").read_text())
    measured = verify.scores_of(results)
    assert measured == {"labels_5": results["score"], **{k: results["pretrain"][k] for k in ("probe_linear", "probe_knn")}}
    runs = iter([0.4, 0.6])
    monkeypatch.setattr(
        verify, "measure", lambda *a: verify.Measured(Run.open(done_run), {**measured, "labels_5": next(runs)}, 20)
    )
    experiment(GOOD | labels_5(score=score, tolerance=0.06) | {"seeds": [0, 1]})
    found, out, err = ptmrun("verify", "mine")
    assert (found, err) == (code, "")
    assert f"{0.5 - score:+.4f}" in out
    assert "0.4000 0.6000" in out
    assert "time: 20 s a seed, 10 s in the certificate" in out
    assert "abacus in the certificate" in out
    assert "0.1 in the certificate" in out
    assert ("mine: within tolerance" if code == 0 else "mine: DRIFT in labels_5") in out


def test_a_score_that_the_run_does_not_have(ptmrun, experiment, monkeypatch, done_run):
    monkeypatch.setattr(verify, "measure", lambda *a: verify.Measured(Run.open(done_run), {"labels_5": 0.5}, 20))
    experiment(GOOD | {"expected": {"labels_all": {"score": 0.5, "tolerance": 0.1}}})
    code, _, err = ptmrun("verify", "mine")
    assert (code, err) == (2, "ptmrun: mine: its certificate expects labels_all, and the run has labels_5\n")


def test_a_run_that_fails_is_one_line(ptmrun, experiment):
    """In a process of its own, which reads the real conf and finds no such experiment."""
    experiment(GOOD)
    code, _, err = ptmrun("verify", "mine")
    assert (code, err) == (2, "ptmrun: mine: the run with seed=0 ended with exit code 2, not 0\n")


def test_the_listing(ptmrun):
    code, out, _ = ptmrun("verify")
    assert code == 0
    for name in choices.names("experiment"):
        assert f"{name}: {choices.summary('experiment', name)}" in out
    assert not Path("outputs").exists()


def test_every_masked_image_objective_has_a_quick_certificate():
    certified = {n: c for n in choices.names("experiment") if (c := verify.certificate(n))}
    tasks = {compose([f"experiment={n}"]).task.name for n, c in certified.items() if c.quick}
    assert tasks >= {"mim", "mae", "simmim"}
    assert set(choices.names("experiment")) - set(certified) == {*("vision_table", "text_table", "methods_table", "mnist5k_long")}


@pytest.mark.parametrize("name", ["mnist5k_mim", "mnist5k_mae", "mnist5k_simmim"])
def test_quick_certificates_hold(ptmrun, name):
    code, out, err = ptmrun("verify", name, "--quick")
    assert code == 0, out + err
    assert f"{name}: within tolerance" in out
    scores = json.loads(Path("outputs/latest/results.json").read_text())["by_labels"][0]["scores"]
    assert scores["tuned"]["mean"] > scores["random_frozen"]["mean"] + 0.02  # it learns
