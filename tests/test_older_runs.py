"""Run folders that 0.1.0 wrote before its packages moved can still be listed, compared, reported, resumed and exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ptmrun.runs.folder import Run
from ptmrun.stages.predictor import Predictor

HERE = Path(__file__).parent / "older_runs"
NAMES = ("image", "text", "lora")
CLASSES = {"image": [str(d) for d in range(10)], "text": ["bad", "good"], "lora": ["bad", "good"]}


@pytest.fixture
def older(tmp_path):
    """Copies in the working folder; their data set is where they expect it only in the tests that copy it."""
    for name in NAMES:
        shutil.copytree(HERE / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_they_are_small():
    assert sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()) < 1_000_000


def test_list_compare_and_report(older, ptmrun):
    code, out, err = ptmrun("list", older)
    assert code == 0, err
    assert all(name in out for name in NAMES)
    code, out, err = ptmrun("compare", *(older / name for name in NAMES))
    assert code == 0, err
    scores = {name: json.loads((older / name / "results.json").read_text())["score"] for name in NAMES}
    assert all(f"{score:.3f}" in out for score in scores.values())
    for name in NAMES:
        code, _, err = ptmrun("report", older / name)
        assert code == 0, err
        assert f"{scores[name]:.3f}" in (older / name / "report.html").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_done_one_is_not_resumed(older, ptmrun, name):
    code, _, err = ptmrun("resume", older / name)
    assert code == 2
    assert "done already; nothing to resume" in err.splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_one_goes_on_to_the_same_result(older, ptmrun, name):
    """Its weights are read, its data known again, and its test samples get the scores that they had."""
    (older.parent / "texts").mkdir()
    shutil.copy(HERE / "reviews.csv", older.parent / "texts")
    folder = older / name
    before = json.loads((folder / "results.json").read_text())
    shutil.rmtree(folder / "checkpoints" / "logits")
    (folder / "results.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    code, out, err = ptmrun("resume", folder)
    assert code == 0, (out, err)
    after = json.loads((folder / "results.json").read_text())
    assert after["weights_sha256"] == before["weights_sha256"]
    for then, now in zip(before["by_labels"], after["by_labels"], strict=True):  # but from scratch, which is another baseline now
        assert {k: v for k, v in now["scores"].items() if k != "scratch"} == {
            k: v for k, v in then["scores"].items() if not k.startswith("scratch")
        }


@pytest.mark.parametrize("name", NAMES)
def test_they_are_used_without_their_data(older, ptmrun, name):
    code, out, err = ptmrun("export", older / name, "exported")
    assert code == 0, (out, err)
    assert "samples of noise" in out
    assert json.loads(Path("exported/classes.json").read_text()) == CLASSES[name]
    predictor = Predictor.load(Run.open(older / name))
    assert predictor.networks.classes == CLASSES[name]
    raw = predictor.networks.processor.noise(3)
    with torch.no_grad():
        found = predictor.model.predict([predictor.networks.processor(raw)])
    assert found["logits"].shape == (3, len(CLASSES[name]))
    raw = [Image.new("RGB", (20, 9)), Image.new("L", (8, 8), 255)] if name == "image" else ["a fine film", "no heart, no story"]
    for row in predictor.predict(raw):
        assert row["prediction"] in CLASSES[name]
        assert 0 < row["confidence"] <= 1
        assert "unlike" not in row, "which these runs have nothing for"


def test_text_is_generated(older, ptmrun):
    code, out, err = ptmrun("generate", older / "text", "prompt=a fine", "tokens=5")
    assert code == 0, err
    assert out.startswith("a fine")
