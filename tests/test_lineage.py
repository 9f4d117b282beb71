"""What came from what: changed configs on resume, forks, reused stages, lists, comparisons, keys that nothing reads."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, drop_digests, latest
from test_cli_runs import same, weights

from ptmrun.commands import compare, listing
from ptmrun.compose import compose
from ptmrun.config import parsing
from ptmrun.errors import UserError
from ptmrun.reports import scores_table
from ptmrun.runs import changes, config_file
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import reads
from ptmrun.stages import pretrain
from ptmrun.storage import tensor_files
from ptmrun.training import loop

FAST = [*TINY, "finetune.seeds=1", "evaluate.baselines=[chance]"]


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def set_manifest(folder: Path, **entries) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | entries))


@pytest.fixture
def interrupted(ptmrun, monkeypatch):
    """A run that was stopped after 5 of 12 steps of pretraining."""
    real = loop.fit

    def fit(model, batches, plan):
        steps = iter(range(100))
        return real(model, batches, dataclasses.replace(plan, stop=lambda: 15 if next(steps) == 4 else None))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", fit)
        assert ptmrun(*FAST)[0] == 128 + 15
    return latest()


def test_harmless_changes_are_taken_and_listed(interrupted, ptmrun):
    code, out, err = ptmrun("resume", interrupted, "pretrain.log_every=2", "device.workers=1")
    assert code == 0, err
    assert "changed: pretrain.log_every: 3 -> 2" in out
    assert "changed: device.workers: 0 -> 1" in out
    assert set(manifest(interrupted)["changed"]) == {"pretrain.log_every: 3 -> 2", "device.workers: 0 -> 1"}
    assert ptmrun(*FAST)[0] == 0
    assert weights(interrupted) == weights(latest())


def test_longer_is_taken_and_said(interrupted, ptmrun):
    code, out, err = ptmrun("resume", interrupted, "pretrain.steps=16")
    assert code == 0, err
    assert "pretrain.steps: 12 -> 16 (the schedule is stretched" in out
    lines = [x for x in Run.open(interrupted).metrics() if x["stage"] == "pretrain" and "lr" in x]
    assert lines[-1]["step"] == 16
    assert config_file.load(interrupted / "config.yaml").pretrain.steps == 16
    code, out, _ = ptmrun("reproduce", interrupted)
    assert "config changed when it was resumed: pretrain.steps: 12 -> 16" in out


REFUSED = {
    "pretrain.lr=0.5": "pretrain.lr: 0.004 -> 0.5: changes what is computed; --fork starts a new run",
    "pretrain.steps=6": "pretrain.steps: 12 -> 6: changes what is computed",
    "seed=3": "seed: 0 -> 3: changes what is computed",
    "task=mae": "task.name: mim -> mae: changes what is computed",
    "device.precision=bf16": "device.precision: fp32 -> bf16",
    "pretrain.lrr=1": "pretrain.lrr: no such key",
    "pretrain.log_every=0": "pretrain.log_every=0: expected greater than or equal to 1",
}


@pytest.mark.parametrize("argument", REFUSED)
def test_other_changes_are_refused(done_run, tmp_path, ptmrun, argument):
    shutil.copytree(done_run, tmp_path / "run")
    set_manifest(tmp_path / "run", status="interrupted")
    before = (tmp_path / "run" / "config.yaml").read_text()
    code, _, err = ptmrun("resume", tmp_path / "run", argument)
    assert code == 2
    assert REFUSED[argument] in err
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert manifest(tmp_path / "run")["status"] == "interrupted"


def test_a_complete_stage_is_not_made_longer(done_run, tmp_path, ptmrun):
    shutil.copytree(done_run, tmp_path / "run")
    set_manifest(tmp_path / "run", status="interrupted")
    _, _, err = ptmrun("resume", tmp_path / "run", "pretrain.steps=99", "finetune.steps=99")
    assert "pretrain.steps: 12 -> 99: that stage is complete; --fork" in err
    assert "finetune.steps: 4 -> 99: that stage is complete; --fork" in err


def test_a_fork_starts_from_the_last_checkpoint(interrupted, ptmrun):
    tensors = tensor_files.load(interrupted / "checkpoints/state/pretrain.safetensors")[0]
    expected = tensor_files.part(tensors, "model.encoder.")
    code, _, err = ptmrun("resume", interrupted, "--fork", "pretrain.lr=1e-5", "name=fork", "stage=pretrain")
    assert code == 0, err
    fork = latest()
    assert fork.name.endswith("_fork")
    start = tensor_files.load(fork / "checkpoints/start.safetensors")[0]
    assert tensor_files.sha256(start) == tensor_files.sha256(expected)
    parent = manifest(fork)["parents"][0]
    assert parent["run"] == interrupted.name
    assert parent["weights_sha256"] == tensor_files.sha256(expected)
    assert config_file.load(fork / "config.yaml").pretrain.lr == 1e-5
    assert manifest(interrupted)["status"] == "interrupted"


def test_a_fork_of_a_done_run(done_run, tmp_path, ptmrun):
    code, _, err = ptmrun("resume", done_run, "--fork", "stage=finetune", "finetune=linear", "finetune.seeds=1", "outputs=o")
    assert code == 0, err
    [folder] = Path("o").glob("2*")
    assert manifest(folder)["parents"][0]["run"] == done_run.name


def test_changed_data_is_refused_by_the_stages_and_by_reproduce(done_run, tmp_path, ptmrun):
    shutil.copytree(done_run, tmp_path / "old")
    set_manifest(tmp_path / "old", data={"fingerprint": "0" * 64})
    for words in (["stage=evaluate", f"init={tmp_path / 'old'}"], ["reproduce", tmp_path / "old"]):
        code, _, err = ptmrun(*words)
        assert code == 2
        assert "the data has changed since" in err
    code, _, err = ptmrun("stage=finetune", f"init={tmp_path / 'old'}", "dataset.limit=200", "finetune.seeds=1", *TINY[-4:])
    assert code == 0, "other data on purpose is transfer, not a change"


OTHER_DATA = ["dataset.label_column=b", "dataset.text_column=b", "dataset.documents=lines", "dataset.encoding=latin-1"]
SAME_DATA = ["dataset.errors=replace", "downstream.labels_per_class=3"]
OTHER_IMAGES = ["dataset.root=photos", "dataset.split_seed=1", "dataset.image_size=8", "dataset.folds=2"]
SAME_IMAGES = ["dataset.cache_gb=1", "dataset.augment.shift=0.2", "dataset.max_unreadable=0.5", "dataset.normalise=data"]


@pytest.mark.parametrize("setting", [*OTHER_DATA, *SAME_DATA, *OTHER_IMAGES, *SAME_IMAGES])
def test_data_that_is_read_otherwise_on_purpose_has_not_changed(setting):
    """Which keys make data another, so that its fingerprint may differ from the parent's."""
    text = setting in (*OTHER_DATA, *SAME_DATA)
    words = ["model=bert", "dataset=text", "dataset.root=corpus"] if text else ["dataset=imagefolder", "dataset.root=folder"]
    assert (reads(compose(words)) != reads(compose([*words, setting]))) == (setting in (*OTHER_DATA, *OTHER_IMAGES))


def test_a_stage_with_the_same_inputs_is_skipped(ptmrun, monkeypatch):
    code, before, _ = ptmrun(*FAST)
    assert code == 0
    first = latest()
    events = [{"purpose": p, "why": "x", "to": 1} for p in ("pretrain", "finetune/5-tuned-0")]
    set_manifest(first, alarms=[{"step": 1, "what": "x"}], recoveries=events)
    trained = []
    real = pretrain.train_objective
    monkeypatch.setattr(pretrain, "train_objective", lambda context: trained.append(1) or real(context))
    code, out, err = ptmrun(*FAST, "skip_done=true", "finetune=linear", "name=b")
    assert code == 0, err
    second = latest()
    assert not trained
    assert f"Stage pretrain has been done with the same inputs: taken from outputs/{first.name}" in out
    assert manifest(second)["reused"] == {"pretrain": first.name}
    assert manifest(second)["weights_sha256"] == manifest(first)["weights_sha256"]
    assert (manifest(second)["alarms"], manifest(second)["recoveries"]) == (manifest(first)["alarms"], events[:1])
    lines = [[x["loss"] for x in Run.open(f).metrics() if x["stage"] == "pretrain" and "loss" in x] for f in (first, second)]
    assert lines[0] == lines[1]
    code, out, _ = ptmrun(*FAST, "skip_done=true", "name=c")
    assert manifest(latest())["reused"] == dict.fromkeys(("pretrain", "finetune", "evaluate"), first.name)
    same(latest(), first)
    assert manifest(latest())["recoveries"] == events
    warned = [[line for line in text.splitlines() if line.startswith("Warning")] for text in (before, out)]
    assert warned[0] == warned[1], "what a reused stage read counts as read"
    code, out, _ = ptmrun("reproduce", latest())
    assert code == 0
    assert trained == [1], "a stage that is taken from a run shows nothing of it"
    assert "bit-exact" in out
    ptmrun(*FAST, "skip_done=true", "pretrain.lr=1e-3", "stage=pretrain")
    assert trained == [1, 1]
    assert "reused" not in manifest(latest())
    tree = listing.tree(listing.listed(Path("outputs"), {}, "name"), Path("outputs"))
    assert {str(c.label).split(":")[0] for c in tree.children[0].children} >= {second.name}


def test_a_number_instead_of_the_rule_is_refused():
    old = compose([])
    with pytest.raises(UserError, match=r"finetune.steps: auto -> 500: changes what is computed; --fork"):
        changes.allowed(SimpleNamespace(), old, parsing.replace(old, finetune__steps=500))


def test_evaluating_other_fine_tuned_weights_is_not_skipped(done_run, tmp_path, ptmrun):
    for name, shift in (("a", 0.0), ("b", 1.0)):
        shutil.copytree(done_run, tmp_path / name)
        file = tmp_path / name / "checkpoints" / "finetuned" / "5-tuned-0.safetensors"
        tensors, state = tensor_files.load(file)
        tensors["head.bias"] += shift
        tensor_files.save(file, tensors, state)
        known = manifest(tmp_path / name)["finetuned_sha256"]
        set_manifest(tmp_path / name, finetuned_sha256=known | {"5-tuned-0": tensor_files.sha256(tensors)})
    words = ["stage=evaluate", "skip_done=true", "evaluate.baselines=[chance]", *TINY[-4:]]
    reused = []
    for name in "aba":
        assert ptmrun(*words, f"init={tmp_path / name}")[0] == 0
        reused.append("reused" in manifest(latest()))
    assert reused == [False, False, True]


def test_keys_that_nothing_reads(ptmrun):
    dead = ["finetune.lr=0.1", "dataset.root=nowhere", "evaluate.scratch_repeats=2", "pretrain.lr=1e-3", "task.mask_ratio=0.5"]
    code, out, _ = ptmrun(*TINY[:10], *TINY[11:], "stage=pretrain", *dead)
    assert code == 0
    warned = [line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("Warning")]
    assert {"finetune.lr", "dataset.root", "evaluate.scratch_repeats"} <= set(warned)
    assert not {"pretrain.lr", "task.mask_ratio", "dataset.limit", "pretrain.steps", "device.threads"} & set(warned)
    used = [t for t in TINY if t.split(".")[0] not in ("finetune", "evaluate", "downstream")]
    code, _, err = ptmrun(*used, "stage=pretrain", dead[0], "strict=true")
    assert code == 2
    assert err.splitlines()[0] == "ptmrun: finetune.lr: given, but nothing in this run reads it"
    assert manifest(latest())["status"] == "failed"


def test_a_whole_run_reads_every_key_that_the_tests_give(done_run):
    assert "Warning" not in (done_run / "log.txt").read_text()


def test_list(done_run, tmp_path, ptmrun):
    for name in ("a", "b"):
        shutil.copytree(done_run, tmp_path / "outputs" / name)
    set_manifest(tmp_path / "outputs" / "b", status="running")
    shutil.copytree(done_run, tmp_path / "outputs" / "c")
    (tmp_path / "outputs" / "c" / "config.yaml").write_text("- no config")
    (tmp_path / "outputs" / "latest").symlink_to("a")
    _, out, _ = ptmrun("list")
    assert [line.split()[1] for line in out.splitlines() if " MB" in line] == ["a", "b", "c"]
    assert "accuracy" in out
    assert "killed" in out
    assert "broken" in out
    score = json.loads((done_run / "results.json").read_text())["score"]
    assert f"{score:.3f} accuracy" in out
    _, out, _ = ptmrun("list", "status=killed")
    assert [line.split()[1] for line in out.splitlines() if " MB" in line] == ["b"]
    assert "no runs" in ptmrun("list", "task=mae")[1]
    assert "a" in ptmrun("list", "task.mask_ratio=0.65", "sort=score")[1]
    assert "no such folder" in ptmrun("list", "nowhere")[2]
    assert "sort=x: expected one of" in ptmrun("list", "sort=x")[2]
    assert "no run in outputs has such a key (did you mean task?)" in ptmrun("list", "tusk=mim")[2]


def test_the_tree_shows_what_came_from_what(done_run, tmp_path, ptmrun):
    for name, parent in (("first", None), ("second", "first"), ("third", "second")):
        folder = tmp_path / "outputs" / name
        shutil.copytree(done_run, folder)
        set_manifest(folder, parents=[{"run": parent, "weights_sha256": None}] if parent else [])
    _, out, _ = ptmrun("list", "--tree")
    depth = {line.split(":")[0].split()[-1]: line.index(line.split(":")[0].split()[-1]) for line in out.splitlines()[1:]}
    assert depth["first"] < depth["second"] < depth["third"]
    set_manifest(tmp_path / "outputs" / "first", parents=[{"run": "third", "weights_sha256": None}])
    assert ptmrun("list", "--tree")[0] == 0, "a forged circle ends"


def test_compare_shows_differences_only(done_run, tmp_path, ptmrun):
    tuned = ["finetune=linear", "finetune.lr=0.01", "finetune.steps=4", *TINY[-4:]]
    assert ptmrun("stage=finetune", f"init={done_run}", *tuned, "outputs=o")[0] == 0
    [tuned] = Path("o").glob("2*")
    assert ptmrun("stage=evaluate", f"init={tuned}", "evaluate.baselines=[chance]", "name=linear", *TINY[-4:])[0] == 0
    code, _, err = ptmrun("compare", done_run, latest())
    assert code == 0, err
    runs = [Run.open(done_run), Run.open(latest())]
    keys = set(compare.differences(runs))
    assert {"finetune.name", "finetune.lr", "stage"} <= keys
    assert not keys & {"pretrain.lr", "model.size", "seed", "outputs", "init"}
    [column] = scores_table.scores(runs[0])
    assert [len(c) for c in scores_table.correctness(runs[0], column)] == [359, 359]
    rows = compare.grouped(runs)
    gap, noise = scores_table.difference(*rows, column)
    a, b = (r.values(column) for r in rows)
    assert gap == pytest.approx(sum(a) / len(a) - sum(b) / len(b))
    assert noise > 0
    [folder] = Path("outputs").glob("*_compare")
    assert (folder / "scores.csv").read_text().count("\n") == 3
    assert "<polyline" in (folder / "compare.html").read_text()
    assert "expected RUN RUN..." in ptmrun("compare", done_run)[2]


def test_runs_that_differ_by_the_seed_share_a_row(done_run, tmp_path):
    shutil.copytree(done_run, tmp_path / "b")
    path = tmp_path / "b" / "config.yaml"
    path.write_text(path.read_text().replace("\nseed: 0", "\nseed: 5"))
    drop_digests(tmp_path / "b")
    [row] = compare.grouped([Run.open(done_run), Run.open(tmp_path / "b")])
    assert (row.setting, len(row.runs)) == ({"run": "A"}, 2)
    assert [compare.letters(n) for n in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


def test_runs_from_other_weights_are_other_settings(tmp_path):
    """Pretrainings that differ by the seed alone are repeats; files, and runs on other data or gone, are not."""

    def made(name: str, *overrides: str) -> Run:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(parsing.dump(compose(list(overrides))))
        (tmp_path / name / "manifest.json").write_text('{"status": "done"}')
        return Run.open(tmp_path / name)

    def rows(*runs: Run) -> list[list[str]]:
        return [[run.folder.name for run in row.runs] for row in compare.grouped(list(runs))]

    for name, *overrides in (("p1", "seed=1"), ("p2", "seed=2"), ("other", "seed=1", "dataset=mnist")):
        made(name, *overrides)
    tuning = ["stage=finetune+evaluate", "dataset=digits"]
    seeds = [made(f"t{i}", *tuning, f"init=p{i}", f"seed={i}") for i in (1, 2)]
    other, third = made("t3", *tuning, "init=other", "seed=1"), made("t4", "stage=evaluate", "init=t1")
    assert rows(*seeds, other) == [["t1", "t2"], ["t3"]]
    assert compare.differences([seeds[0], other])["init"] == ["p1", "other"]
    assert "init" not in compare.differences([seeds[0], third])
    files = [made(f"f{i}", *tuning, "model=resnet", f"init={i}.pth") for i in "ab"]
    assert rows(*files) == [["fa"], ["fb"]]
    shutil.rmtree(tmp_path / "p2")
    assert rows(*seeds) == [["t1"], ["t2"]]


def test_an_experiment_chooses_its_groups_also_where_a_run_gives_the_others(done_run):
    """A group that is typed wins over the experiment's, which wins over the parent's."""
    parent = config_file.load(done_run / "config.yaml")
    few = compose([f"init={done_run}", "experiment=fashion_few_labels"])
    assert (few.dataset.name, few.dataset.root, few.dataset.augment.flip) == ("fashion_mnist", "data", True)
    assert (few.task, few.pretrain.steps, few.pretrain.lr) == (parent.task, 8000, parent.pretrain.lr)
    typed = compose([f"init={done_run}", "experiment=mnist5k_mae", "task=simmim"])
    assert (typed.dataset.name, typed.task.name) == ("mnist5k", "simmim")


@pytest.mark.parametrize("flags", [[], ["--fork"]])
def test_a_run_that_goes_on_takes_no_other_weights(done_run, ptmrun, flags):
    code, _, err = ptmrun("resume", done_run, *flags, "init=pretrained")
    assert code == 2
    assert err == "ptmrun: init=pretrained: a run that is resumed or forked keeps its weights; for others make a new run\n"


def test_inherited_and_saved_configs_compose_alike():
    saved = compose(["task=mae", "pretrain.lr=1e-5", "pretrain.epochs=3", "device.threads=1"])
    assert compose([], saved) == saved
    assert compose(["pretrain.log_every=2"], saved) == parsing.replace(saved, pretrain__log_every=2)
    with pytest.raises(UserError, match="no such key"):
        compose(["pretrain.log_evry=2"], saved)
