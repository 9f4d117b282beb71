"""Every model on a folder of photos of all kinds, without any other setting; every objective that fits a convolutional model."""

import json

import pytest
from conftest import draw, latest

from ptmrun.config import choices, parsing, specs
from ptmrun.runs import config_file

SHORT = [
    "pretrain.steps=2",
    "pretrain.batch_size=8",
    "pretrain.probes=1",
    "finetune.steps=1",
    "finetune.seeds=1",
    "finetune.batch_size=8",
    "evaluate.baselines=[chance,frozen]",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]
MODES = ["RGB", "L", "RGBA", "CMYK", "P", "LA"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 12 pictures: all modes, sides from 5 to 60 pixels."""
    root = tmp_path_factory.mktemp("photos")
    for name, shade in (("cat", 1), ("dog", 4)):
        for i in range(12):
            mode = MODES[i % len(MODES)]
            suffix = {"CMYK": "jpg", "RGB": "jpg"}.get(mode, "png")
            draw(root / name / f"{i}.{suffix}", mode, size=(5 + 5 * i, 9 + 3 * i), shade=shade)
    return root


@pytest.mark.parametrize("model", [m for m in choices.names("model") if "images" in specs.spec("model", m).needs])
def test_a_folder_of_photos_works_for_every_model(ptmrun, photos, model):
    code, out, err = ptmrun(f"model={model}", "dataset=imagefolder", f"dataset.root={photos}", *SHORT)
    assert code == 0, err
    results = json.loads((latest() / "results.json").read_text())
    assert 0 <= results["score"] <= 1
    assert results["pretrain"]["steps"] == 2
    assert "colour, 2 classes" in out
    cfg = config_file.load(latest() / "config.yaml")
    assert cfg.model.name == model
    assert "auto" not in parsing.plain(cfg)["model"].values() or model == "imagegpt"  # whose layer the probe chooses


@pytest.mark.parametrize("task", [t for t in choices.names("task") if specs.spec("task", t).requires <= {"images"}])
def test_every_objective_runs_and_resumes_to_the_same_result(ptmrun, photos, task):
    overrides = ["model=cnn", f"task={task}", "dataset=imagefolder", f"dataset.root={photos}", *SHORT]
    code, out, err = ptmrun(*overrides)
    assert code == 0, err
    first = latest()
    assert "(held-out training images)" in out
    assert (first / "figures" / ("reconstructions.png" if task == "simmim" else "curves.png")).exists()
    assert (first / "figures" / "views.png").exists() == (task in ("simclr", "byol", "dino"))
    code, out, err = ptmrun("reproduce", first)
    assert code == 0, err
    assert "bit-exact" in out


def test_a_task_that_needs_labels_says_so(ptmrun, photos, tmp_path):
    for i in range(20):
        draw(tmp_path / "plain" / f"{i}.png", shade=i)
    code, _, err = ptmrun("model=cnn", "task=supervised", "dataset=imagefolder", f"dataset.root={tmp_path / 'plain'}", *SHORT)
    assert code == 2
    assert "task=supervised: needs classes, the data has none; without them there is: task=byol, dino, simclr, simmim\n" in err
