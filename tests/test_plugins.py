"""The example package of the docs is installed and runs: a kind of data, a data set, a model and an objective."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["pretrain.steps=8", "pretrain.batch_size=32", "pretrain.probes=1", "finetune.steps=4", "finetune.seeds=1"]
SMALL += ["device=cpu", "device.precision=fp32", "device.threads=1", "device.workers=0", "dataset.count=120"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder of installed packages with the example in it."""
    work = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "docs" / "example_plugin", work / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--target", work / "site", work / "source"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work / "site"


EACH = "import json, sys; from ptmrun import cli; sys.exit(max(map(cli.run, json.loads(sys.argv[1]))))"


def ptmrun(site: Path, *argv: str, more: tuple[Path, ...] = ()) -> tuple[int, str, str]:
    return each(site, [[*argv]], more)


def each(site: Path, commands: list[list[str]], more: tuple[Path, ...] = ()) -> tuple[int, str, str]:
    """Commands in one process: the highest of their exit codes, and all that they print."""
    paths = os.pathsep.join(map(str, (ROOT, site, *more)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", EACH, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_a_third_kind_of_data(installed):
    run = "outputs/latest"
    code, out, err = each(installed, [["model=conv1d", *SMALL], ["export", run, "exported"], ["reproduce", run]])
    assert code == 0, err
    assert "UserWarning" not in err
    results = json.loads(Path("outputs/latest/results.json").read_text())
    assert results["by_labels"][0]["scores"].keys() >= {"chance", "raw", "random_frozen", "frozen", "scratch", "tuned"}
    config = Path("outputs/latest/config.yaml").read_text()
    assert "image_size" not in config
    assert "document_mask" not in config
    assert "largest difference 0.0e+00 on 8 test samples" in out
    assert "bit-exact" in out


def test_its_choices_are_listed_and_checked(installed):
    code, out, _ = ptmrun(installed, "--help")
    assert code == 0
    assert "conv1d" in out
    code, _, err = ptmrun(installed, "model=conv1d", "dataset=digits")
    assert code == 2
    assert "model=conv1d dataset=digits: the data has no series" in err
    code, _, err = ptmrun(installed, "model=conv1d", "finetune.mixup=0.1")
    assert (code, err) == (
        2,
        "ptmrun: finetune.mixup: data of the kind series (dataset=waves) have no such setting; leave it out\n",
    )


def test_a_name_that_two_packages_have_is_an_error(installed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(installed / "ptmrun_series", other / "second_series")
    info = next(installed.glob("*.dist-info"))
    shutil.copytree(info, other / "second-0.1.dist-info")
    (other / "second-0.1.dist-info" / "entry_points.txt").write_text("[ptmrun.plugins]\nsecond = second_series\n")
    metadata = (other / "second-0.1.dist-info" / "METADATA").read_text()
    (other / "second-0.1.dist-info" / "METADATA").write_text(metadata.replace("Name: ptmrun-series", "Name: second"))
    code, _, err = ptmrun(installed, "model=conv1d", more=(other,))
    assert code == 2
    assert "is in the packages ptmrun_series and second_series; rename it, or uninstall the plug-in" in err


def test_a_package_that_is_gone_is_named(installed, tmp_path):
    other = tmp_path / "other" / "gone-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 0.1\n")
    (other / "entry_points.txt").write_text("[ptmrun.plugins]\ngone = no_such_package\n")
    code, _, err = ptmrun(installed, "--help", more=(other.parent,))
    assert code == 2
    assert err == "ptmrun: plug-in gone: there is no package no_such_package; install it again, or remove it\n"
