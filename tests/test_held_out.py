"""That a score is of held-out samples, and of the classes that it was trained on."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CNN, TINY, draw, latest

from ptmrun.data.text.split import TextSplit
from ptmrun.storage import tensor_files

QUICK = [*TINY, *CNN, "task=simclr", "finetune.seeds=1", "evaluate.baselines=[chance]"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A finished run on drawings of cats and dogs, and their folder."""
    root = tmp_path_factory.mktemp("pets")
    for i in range(60):
        draw(root / "pets" / ("cat", "dog")[i % 2] / f"{i:02}.png", shade=3 * (i % 2))
    return root


@pytest.fixture
def run_of(pets, ptmrun):
    def run(*argv):
        own = ["dataset=imagefolder", f"dataset.root={pets / 'pets'}", "dataset.image_size=16", "dataset.limit=null"]
        code, _, err = ptmrun(*QUICK, *own, "downstream.labels_per_class=5", "finetune.steps=20", *argv)
        assert code == 0, err
        return latest()

    return run


def test_other_splits_of_the_same_data_are_told(done_run, ptmrun):
    """The samples that a run was trained on stand in its folder as numbers."""
    ids = tensor_files.load(done_run / "checkpoints" / "trained_on.safetensors")[0]["ids"]
    assert len(ids) == 300, "270 to train and 30 to validate"
    code, out, err = ptmrun("stage=evaluate", f"init={done_run}", "dataset.split_seed=5", "evaluate.baselines=[chance]")
    assert code == 0, err
    results = json.loads((latest() / "results.json").read_text())
    assert 0 < results["test_seen"] < 359
    assert f"Warning: {done_run} was trained on {results['test_seen']} of the 359 test images" in out
    assert f"Warning: {results['test_seen']} of 359 test samples have an equal one among those that are trained on" in out
    assert "have an equal one among" in (latest() / "report.html").read_text()
    code, out, err = ptmrun("stage=evaluate", f"init={done_run}", "evaluate.baselines=[chance]")
    assert code == 0, err
    assert "Warning" not in out
    assert json.loads((latest() / "results.json").read_text())["test_seen"] == 0


def test_classes_are_matched_by_name(run_of, pets, tmp_path, ptmrun):
    """Of folders with other names nothing is known; a class more that was trained on is no matter."""
    trained = run_of()
    shutil.copytree(pets / "pets", tmp_path / "renamed")
    (tmp_path / "renamed" / "cat").rename(tmp_path / "renamed" / "b_cat")
    (tmp_path / "renamed" / "dog").rename(tmp_path / "renamed" / "a_dog")
    code, _, err = ptmrun("stage=evaluate", f"init={trained}", f"dataset.root={tmp_path / 'renamed'}", "device=cpu")
    assert code == 2
    assert "was trained to tell cat, dog apart; the data has the class a_dog: stage=finetune first" in err


def test_some_of_the_classes_may_be_evaluated(pets, tmp_path, ptmrun):
    root = tmp_path / "pets"
    shutil.copytree(pets / "pets", root)
    for i in range(30):
        draw(root / "bird" / f"{i:02}.png", shade=6, mode="L")
    own = ["dataset=imagefolder", f"dataset.root={root}", "dataset.image_size=16", "dataset.limit=null"]
    more = ["downstream.labels_per_class=10", "finetune.steps=60", "finetune.lr=1e-2"]
    code, _, err = ptmrun(*QUICK, *own, *more)
    assert code == 0, err
    trained = latest()
    score = json.loads((trained / "results.json").read_text())["metrics"]["per_class"]
    code, out, err = ptmrun("stage=evaluate", f"init={trained}", "device=cpu", f"dataset.root={pets / 'pets'}")
    assert code == 0, err
    assert "matched by name: the data's 2 classes of the 3 that it was trained on" in out
    found = json.loads((latest() / "results.json").read_text())["metrics"]["per_class"]
    assert found.keys() == {"cat", "dog"}
    assert all(found[name]["recall"] >= score[name]["recall"] - 0.2 for name in found), "rows of the head follow the names"


def test_equal_texts_have_the_same_number():
    def split(*texts):
        return TextSplit([], [], list(texts), 0, torch.arange(len(texts)), None)

    numbers = split("A fine  film.", "a fine film.\n", "No fine film.").group_ids
    assert numbers[0] == numbers[1] != numbers[2]
    assert split("a fine film.").group_ids[0] == numbers[0], "whatever else is in the split"


def test_equal_texts_are_on_one_side(tmp_path, ptmrun):
    """A table with each row three times."""
    words = np.random.default_rng(0).integers(0, 50, (60, 6))
    rows = [f"{' '.join(f'w{w}' for w in line)},{'good' if line[0] < 25 else 'bad'}" for line in words]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows * 3) + "\n")
    argv = ["model=lstm", "dataset=text", "dataset.root=reviews.csv", "model.length=16", "pretrain.steps=2", "finetune.steps=2"]
    more = ["finetune.seeds=1", "device=cpu", "device.threads=1", "evaluate.baselines=[chance]", "pretrain.batch_size=4"]
    code, out, err = ptmrun(*argv, *more)
    assert code == 0, err
    results = json.loads((latest() / "results.json").read_text())
    assert results["n_test"] == 36
    assert results["test_seen"] == 0
    assert "have an equal one" not in out


def test_a_table_as_two_files_is_counted(tmp_path, ptmrun):
    rows = [f"w{i} w{i % 7} w{i % 11},{('good', 'bad')[i % 2]}" for i in range(60)]
    for name, part in (("train", rows[:50]), ("test", rows[44:])):
        (tmp_path / "reviews").mkdir(exist_ok=True)
        (tmp_path / "reviews" / f"{name}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
    argv = ["model=lstm", "dataset=text", "dataset.root=reviews", "model.length=16", "pretrain.steps=2", "finetune.steps=2"]
    more = ["finetune.seeds=1", "device=cpu", "device.threads=1", "evaluate.baselines=[chance]", "pretrain.batch_size=4"]
    code, out, err = ptmrun(*argv, *more)
    assert code == 0, err
    assert "Warning: 6 of 16 test texts have an equal one among those that are trained on" in out
    assert json.loads((latest() / "results.json").read_text())["test_seen"] == 6
