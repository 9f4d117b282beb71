"""Tokens and passwords never stand in a run folder, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
from conftest import TINY, latest

from ptmrun.compose import compose
from ptmrun.config import secrets
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages import run as stages

MIXED = "aB3dE5gH7" * 5
TOKENS = {
    "hf_" + "aB3" * 12: "HF_TOKEN",
    "sk-proj-" + MIXED: "OPENAI_API_KEY",
    "ghp_" + MIXED: "GITHUB_TOKEN",
    "github_pat_" + MIXED: "GITHUB_TOKEN",
    "AKIA" + "A1B2" * 4: "AWS_ACCESS_KEY_ID",
    "glpat-" + MIXED: "GITLAB_TOKEN",
    "xoxb-" + MIXED: "SLACK_TOKEN",
    "'Bearer " + MIXED + "'": "a variable of your own",
    "'https://me:hunter22@host.org/data'": "a variable of your own",
}
HARMLESS = [
    "photos/sk-learn-digits-of-everyone-in-2024",
    "hf-internal-testing/tiny-random-vit",
    "hf_internal_testing/fixtures",
    "'https://host.org:8080/a@b'",
    "/data/AKIA",
    "a3f5c9d1e7b2a3f5c9d1e7b2a3f5c9d1e7b2a3f5",
    "outputs/2026-01-01_00-00-00_vit-mim-digits",
    "task-of-the-keyboard",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("key", ["dataset.root", "name", "seed", "+nowhere"])
def test_a_token_in_an_override_is_refused_unseen(token, key, ptmrun):
    code, out, err = ptmrun("dataset=imagefolder", f"{key}={token}")
    assert code == 2
    assert err == (
        f"ptmrun: {key.lstrip('+')}: holds what looks like a secret; it would be saved in the run folder; "
        f"put it in the environment instead ({TOKENS[token]})\n"
    )
    assert out == ""
    assert not Path("outputs").exists()


def test_sweeps_and_lists_are_looked_at_too(ptmrun):
    token = next(iter(TOKENS))
    for argv in (["-m", f"name=a,{token}"], [f"evaluate.baselines=[{token}]"], ["reproduce", "x", f"outputs={token}"]):
        assert token not in ptmrun(*argv)[2]


@pytest.mark.parametrize("value", HARMLESS)
def test_paths_hashes_and_names_pass(value):
    assert compose(["dataset=imagefolder", f"dataset.root={value}"]).dataset.root == value.strip("'")


def test_the_value_of_a_secret_variable_is_refused(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "tulip-7-garden")
    for text in ("tulip-7-garden", "x/tulip-7-garden/y", "${oc.env:MY_API_KEY}"):
        with pytest.raises(UserError, match=r"dataset.root: holds .* \(MY_API_KEY\)") as caught:
            compose(["dataset=imagefolder", f"dataset.root={text}"])
        assert "tulip" not in str(caught.value)


def test_what_is_written_has_no_secret(monkeypatch):
    """An error that quotes a token: in manifest.json, log.txt, metrics and the report it is masked, numbers are not."""
    monkeypatch.setenv("WANDB_API_KEY", "tulip-7-garden")
    monkeypatch.setenv("PIN_SECRET", "1234567890123456")
    token = next(iter(TOKENS))

    def fail(*_: object) -> None:
        raise RuntimeError(f"401 for token=tulip-7-garden at https://me:hunter22@host.org with {token} 1234567890123456")

    monkeypatch.setattr(stages, "prepare", fail)
    with pytest.raises(RuntimeError):
        stages.run(compose(TINY), TINY)
    run = Run.open(latest())
    run.metric({"stage": "pretrain", "step": 1, "note": "tulip-7-garden", "loss": 0.1234567890123456, "samples_per_s": 1.0})
    run.write_json("splits.json", {"tulip-7-garden": [1234567890123456]})
    run.write("report.html", "<p>tulip-7-garden</p>")
    for path in run.folder.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        assert not any(secret in text for secret in ("tulip", "hunter22", token)), path
    assert run.manifest["error"] == "RuntimeError: 401 for token=*** at ***host.org with *** ***"
    assert run.metrics()[0]["loss"] == 0.1234567890123456
    assert json.loads((run.folder / "splits.json").read_text()) == {"***": [1234567890123456]}


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("X_TOKEN", "1", False),
        ("X_TOKEN", "true", False),
        ("X_TOKEN", "disabled", False),
        ("X_TOKEN", "12345678", False),
        ("X_TOKEN", "/tmp/not/there/yet7", False),
        ("X_TOKEN", "~/keys/7A", False),
        ("X_TOKEN", "outputs", False),
        ("HF_TOKEN_PATH", "nowhere/tok3n", False),
        ("GREETING", "hello-World-7", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("X_TOKEN", "hunter22", True),
        ("x_password", "correct horse", True),
        ("AWS_SECRET_ACCESS_KEY", "/wJalrXUtnFEMI/K7MDENG", True),
        ("X_CREDENTIAL", "abcdefghijklmnopqrst", True),
    ],
)
def test_which_variables_are_secrets(name, value, secret, monkeypatch):
    monkeypatch.setenv(name, value)
    assert (value in secrets.known()) == secret


def test_whole_words_alone_are_masked(monkeypatch):
    monkeypatch.setenv("SORT_KEY", "created_at")
    assert secrets.masked("recreated_at created_at2 (created_at)") == "recreated_at created_at2 (***)"
