"""Whole runs: stages, resume, reproduce, comparison with baselines, and what goes wrong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import CNN, TINY, draw, drop_digests, latest

from ptmrun.commands import reproduce
from ptmrun.compose import compose
from ptmrun.config import parsing, schema
from ptmrun.finetuning import methods
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.stages import budget, compute, scratch
from ptmrun.stages.prepare import prepare
from ptmrun.storage import tensor_files
from ptmrun.training.signals import Stop

KILLS = int(os.environ.get("PTMRUN_KILLS", "2"))


def weights(folder: Path) -> dict[str, str]:
    files = sorted((folder / "checkpoints").rglob("*.safetensors"))
    return {str(f.relative_to(folder)): tensor_files.sha256(tensor_files.load(f)[0]) for f in files}


def same(a: Path, b: Path) -> None:
    """Two runs with the same weights, metrics and results."""
    assert weights(a) == weights(b)
    old, new = Run.open(a), Run.open(b)
    assert reproduce.timeless(old) == reproduce.timeless(new)
    assert reproduce.results(old) == reproduce.results(new)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "ptmrun", *map(str, argv)]


SMALL = [*TINY, *CNN]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run of SMALL in a process of its own, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    begun = time.monotonic()
    done = subprocess.run(command(*SMALL), capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return (folder / "outputs" / "latest").resolve(), time.monotonic() - begun


def test_a_run_leaves_everything(done_run):
    names = {str(p.relative_to(done_run)) for p in done_run.rglob("*") if p.is_file()}
    expected = {"config.yaml", "overrides.yaml", "manifest.json", "metrics.jsonl", "log.txt", "results.json", "report.html"}
    expected |= {"predictions.parquet", "splits.json", "checkpoints/encoder/model.safetensors", "checkpoints/heads.safetensors"}
    expected |= {
        f"figures/{n}.png"
        for n in ("curves", "reconstructions", "augmented", "attention", "confusion", "scores", "embedding", "compute")
    }
    expected |= {"compute.csv"}
    assert expected <= names
    assert not [n for n in names if n.endswith((".pt", ".pth", ".pkl", ".bin", ".part"))]
    assert not [n for n in names if "state" in n]
    manifest = json.loads((done_run / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["packages"]["torch"] == torch.__version__.split("+")[0]
    assert set(manifest["wall_s"]) == {"pretrain", "finetune", "evaluate"}
    cfg = config_file.load(done_run / "config.yaml")
    left = [key for key, value in schema.flat(parsing.plain(cfg)).items() if value == "auto"]
    assert left == ["finetune.layer_decay", "device.side_by_side"], "all is settled but what labels and networks decide"


def test_results_add_up(done_run):
    results = json.loads((done_run / "results.json").read_text())
    assert results["metric"] == "accuracy"
    assert results["n_test"] == 359
    assert set(results["baselines"]) == {"chance", "raw", "raw_knn", "raw_svm", "random_frozen", "frozen", "scratch"}
    assert results["baselines"]["chance"] == pytest.approx(0.1, abs=0.02)
    assert results["baselines"]["raw"] > 0.6
    rows = pq.read_table(done_run / "predictions.parquet").to_pydict()
    right = torch.tensor([a == b for a, b in zip(rows["label"], rows["prediction"], strict=True)]).float().view(2, 359)
    accuracy = float(right[0].mean())
    assert accuracy == pytest.approx(results["metrics"]["accuracy"])
    assert right.mean(1).tolist() == pytest.approx(results["by_labels"][0]["scores"]["tuned"]["values"])
    assert (set(rows["labels_per_class"]), set(rows["repeat"])) == ({5}, {0, 1})
    assert 0.1 < results["val_score"] < 0.9
    confusion = torch.tensor(results["metrics"]["confusion"])
    assert int(confusion.sum()) == results["n_test"]
    assert float(confusion.diag().sum() / confusion.sum()) == pytest.approx(accuracy)
    scores = results["by_labels"][0]["scores"]
    assert results["score"] == pytest.approx(sum(scores["tuned"]["values"]) / 2)
    assert results["verdict"]["gain_over_scratch"] == pytest.approx(scores["tuned"]["mean"] - scores["scratch"]["mean"])
    assert results["pretrain"]["probe_linear"] > results["baselines"]["chance"]


def test_report_is_self_contained(done_run):
    page = (done_run / "report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,iVBOR') == 4
    assert page.count("<svg") == 8  # one of them is what clips the others
    assert "http://" not in page
    assert "https://" not in page
    assert "logistic regression on the raw input (pixels, TF-IDF)" in page


def test_reproduce_is_bit_exact(done_run, ptmrun):
    code, out, _ = ptmrun("reproduce", done_run)
    assert code == 0, out
    assert "bit-exact" in out
    same(done_run, latest())


def test_reproduce_says_what_differs(undisturbed, tmp_path, ptmrun):
    shutil.copytree(undisturbed[0], tmp_path / "old")
    results = json.loads((tmp_path / "old" / "results.json").read_text())
    results["by_labels"][0]["scores"]["raw"]["mean"] += 0.5
    (tmp_path / "old" / "results.json").write_text(json.dumps(results))
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    manifest["packages"]["torch"] = "2.0"
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    drop_digests(tmp_path / "old")
    code, out, _ = ptmrun("reproduce", tmp_path / "old")
    assert code == 1
    assert "package torch: 2.0 then" in out
    assert "different: scores differ by 0.5000" in out


def test_workers_do_not_change_results(tmp_path, ptmrun):
    """Images decoded while training, by 0, 1 or 2 workers: the same weights and predictions, bit for bit."""
    for i in range(40):
        draw(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png", shade=(i % 2) * 3 + i % 3)
    runs = []
    for workers in (0, 1, 2):
        extra = ["dataset=imagefolder", f"dataset.root={tmp_path / 'pets'}", "dataset.cache_gb=0", "dataset.image_size=16"]
        extra += [f"device.workers={workers}", "pretrain.steps=4", "finetune.steps=3", "evaluate.baselines=[chance]"]
        code, _, err = ptmrun(*SMALL[2:], *extra, "finetune.seeds=1")
        assert code == 0, err
        runs.append(latest())
    same(runs[0], runs[1])
    same(runs[0], runs[2])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_is_bit_exact(undisturbed, signum, ptmrun):
    process = subprocess.Popen(command(*SMALL), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "Pretraining" in line:
            break
    process.send_signal(signum)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert "Go on with: ptmrun resume" in out
    folder = latest()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], set(manifest["wall_s"])) == ("interrupted", {"pretrain"}), "its time counts too"
    code, _, err = ptmrun("resume", folder)
    assert code == 0, err
    same(folder, undisturbed[0])


def killed(after: float, *argv: str) -> bool:
    """Starts ptmrun and kills it after so many seconds; False when it had ended before."""
    process = subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, err = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, err
    return False


def done(folder: Path) -> bool:
    return json.loads((folder / "manifest.json").read_text())["status"] == "done"


def test_kill_at_any_moment_and_resume_is_bit_exact(undisturbed, ptmrun):
    """kill -9 at random moments of runs and of their resumptions: each ends with the same weights, metrics and results."""
    chance, kills, number = random.Random(0), 0, 0
    expected, seconds = undisturbed

    def moment() -> float:
        return seconds * chance.uniform(0.3, 1)

    while kills < KILLS:
        number += 1
        hit = killed(moment(), *SMALL, f"name=k{number}")
        folders = list(Path("outputs").glob(f"*_k{number}"))
        while hit and folders and kills < KILLS:
            kills += 1
            hit = not done(folders[0]) and killed(moment(), "resume", folders[0])
        if folders and not done(folders[0]):
            code, _, err = ptmrun("resume", folders[0])
            assert code == 0, err
        if folders:
            same(folders[0], expected)


def test_stages_one_by_one(undisturbed, ptmrun):
    """pretrain, finetune and evaluate as three runs give what one run gives; each names its parent."""
    done_run, _ = undisturbed
    assert ptmrun(*SMALL, "stage=pretrain")[0] == 0
    first = latest()
    assert ptmrun("stage=finetune", f"init={first}", "device.threads=1", "device.precision=fp32")[0] == 0
    second = latest()
    assert second.name.endswith("-finetune")
    code, _, err = ptmrun("stage=evaluate", f"init={second}", "device.threads=1", "device.precision=fp32")
    assert code == 0, err
    whole, parts = (json.loads((p / "results.json").read_text()) for p in (done_run, latest()))
    assert parts["by_labels"] == whole["by_labels"]
    assert parts["weights_sha256"] == whole["weights_sha256"]
    parent = json.loads((latest() / "manifest.json").read_text())["parents"][0]
    fingerprint = json.loads((done_run / "manifest.json").read_text())["data"]["fingerprint"]
    assert parent == {"run": second.name, "weights_sha256": whole["weights_sha256"], "data": fingerprint}
    assert ptmrun("stage=finetune+evaluate", f"init={first}", "device.threads=1", "device.precision=fp32")[0] == 0
    assert latest().name.endswith("-finetune-evaluate")
    assert json.loads((latest() / "results.json").read_text())["by_labels"] == whole["by_labels"]
    assert ptmrun("stage=finetune", f"init={first}", "finetune=linear", "finetune.seeds=1", "finetune.steps=4")[0] == 0
    assert config_file.load(latest() / "config.yaml").finetune.name == "linear"


def test_from_scratch_can_be_fine_tuned_and_evaluated(ptmrun):
    """Without pretraining there is nothing to compare with scratch: no verdict."""
    assert ptmrun(*TINY, "stage=finetune", "finetune.seeds=1")[0] == 0
    tuned = latest()
    asked = "evaluate.baselines=[chance,random_frozen,frozen,scratch]"
    assert ptmrun("stage=evaluate", "init=outputs/latest", asked)[0] == 0  # the newest run before this one
    assert config_file.load(latest() / "config.yaml").init == f"outputs/{tuned.name}"
    results = json.loads((latest() / "results.json").read_text())
    assert results["verdict"] is None
    assert set(results["baselines"]) == {"chance", "random_frozen"}


@pytest.mark.parametrize("method", ["linear", "top"])
def test_frozen_weights_stay(done_run, method, ptmrun):
    code, out, _ = ptmrun("stage=finetune", f"init={done_run}", f"finetune={method}", "finetune.seeds=1", "finetune.steps=3")
    assert code == 0
    [file] = (latest() / "checkpoints" / "finetuned").iterdir()
    names = set(tensor_files.load(file)[0])
    if method == "linear":
        assert names == {"head.weight", "head.bias"}
        assert "970 of" in out
    else:
        assert {n.split(".")[3] for n in names if ".layers." in n} == {"2"}
        assert "encoder.vit.layernorm.weight" in names
        assert "encoder.vit.embeddings.cls_token" not in names


LONG = ["evaluate.baselines=[chance]", "pretrain.checkpoint_every=30", "finetune.checkpoint_every=30"]


def test_a_budget_ends_on_time(ptmrun):
    begun = time.thread_time()  # what the budget is counted in on a CPU; other work on the machine takes none of it
    code, out, err = ptmrun(*[x for x in SMALL if "steps" not in x], "budget=10s", *LONG)
    assert code == 0, err
    assert 2.5 < time.thread_time() - begun < 20
    cfg = config_file.load(latest() / "config.yaml")
    assert cfg.pretrain.steps > 10
    assert cfg.budget is None
    assert f"pretrain.steps={cfg.pretrain.steps}: for budget=10s" in out


def test_a_budget_knows_what_a_step_from_scratch_costs(monkeypatch):
    """There every weight is trained, whatever the method: here a step takes as many seconds as it trains parameters."""
    monkeypatch.setattr(budget, "seconds_per_step", lambda context, model, *_: methods.parameters(model, trainable=True))
    monkeypatch.setattr(compute, "pretraining", lambda context: compute.Fit(3000.0, 10, 0))  # 300 a step
    monkeypatch.setattr(compute, "fine_tuning", lambda context, trial: compute.Fit(400.0, 4, 0))  # 100 a step
    monkeypatch.setattr(scratch, "step_of", lambda context, labels: (1000.0, 50))
    cfg = compose([*TINY, "finetune=linear", "finetune.seeds=1", "evaluate.baselines=[scratch]"])
    context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
    context.cfg = parsing.replace(context.cfg, budget="1000000000s")
    found, _ = budget.size_steps(context)
    every = 338_890 / 1000  # seconds of an operation from scratch
    left = budget.USABLE * 1e9 - cfg.finetune.steps * (970 + (scratch.BRANCHED + scratch.DECAY) * 100 * every)
    each = methods.parameters(context.objective(), trainable=True) + scratch.BRANCHED * 300 * every
    assert found.pretrain.steps == pytest.approx(left / each, abs=1)


def test_unlabelled_images_are_pretrained_only(tmp_path, ptmrun):
    for i in range(30):
        draw(tmp_path / "photos" / f"{i}.png", shade=i)
    code, out, err = ptmrun(*TINY[2:], "dataset=imagefolder", f"dataset.root={tmp_path / 'photos'}")
    assert code == 0, err
    assert "only the pretraining stage runs" in out
    assert not (latest() / "results.json").exists()
    code, _, err = ptmrun("stage=finetune", "dataset=imagefolder", f"dataset.root={tmp_path / 'photos'}")
    assert code == 2
    assert "needs at least two classes; the data has 0" in err


BAD = {
    "downstream.labels_per_class=1000": "labels_per_class=1000: class 8 has",
    "model.patch=3": "model.patch=3: expected a divisor of the image's side 8: 2, 4",
    "device=cuda": "device=cuda: not available here; there is: cpu",
    "outputs=/proc/nowhere": "outputs=/proc/nowhere: no run folder can be made there",
}


@pytest.mark.parametrize("argument", BAD)
def test_what_cannot_work_is_said_before_training(argument, ptmrun):
    if argument == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = ptmrun(*[x for x in TINY if x.split("=")[0] != argument.split("=")[0]], argument)
    assert code == 2
    assert BAD[argument] in err
    assert "Traceback" not in err


def test_a_batch_larger_than_the_data_is_the_data(ptmrun):
    code, out, err = ptmrun(*TINY, "pretrain.batch_size=1000", "stage=pretrain")
    assert code == 0, err
    assert "12 steps of 270 images" in out


def test_done_runs_are_not_resumed_and_unfinished_not_reproduced(done_run, tmp_path, ptmrun):
    assert "done already" in ptmrun("resume", done_run)[2]
    shutil.copytree(done_run, tmp_path / "cut")
    manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
    (tmp_path / "cut" / "manifest.json").write_text(json.dumps(manifest | {"status": "failed"}))
    assert "is failed, not done" in ptmrun("reproduce", tmp_path / "cut")[2]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.yaml", "_target_: os.system\n", "_target_: no such key"),
        ("config.yaml", "extra: ${oc.env:HOME}\n", "interpolation ${oc.env:HOME}"),
        ("checkpoints/state/pretrain.safetensors", "cos\nsystem\n(S'touch x'\ntR.", "not a whole safetensors file"),
    ],
)
def test_hostile_folders_are_refused(done_run, tmp_path, name, text, expected, ptmrun):
    shutil.copytree(done_run, tmp_path / "bad")
    shutil.rmtree(tmp_path / "bad" / "checkpoints" / "encoder")
    manifest = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    (tmp_path / "bad" / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    drop_digests(tmp_path / "bad")
    path = tmp_path / "bad" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(path.read_text() + text if path.exists() else text)
    code, _, err = ptmrun("resume", tmp_path / "bad")
    assert code == 2
    assert expected in err


def test_a_chain_of_runs_without_end_is_refused(done_run, tmp_path, ptmrun):
    shutil.copytree(done_run, tmp_path / "loop")
    shutil.rmtree(tmp_path / "loop" / "checkpoints")
    drop_digests(tmp_path / "loop")
    path = tmp_path / "loop" / "config.yaml"
    path.write_text(path.read_text().replace("init: random", f"init: {tmp_path / 'loop'}"))
    code, _, err = ptmrun("stage=finetune", f"init={tmp_path / 'loop'}")
    assert code == 2
    assert "the chain of runs that start from one another has no end" in err


def test_changed_data_is_refused_on_resume(done_run, tmp_path, ptmrun):
    shutil.copytree(done_run, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["status"], manifest["data"]["fingerprint"] = "interrupted", "0" * 64
    path.write_text(json.dumps(manifest))
    (tmp_path / "run" / "splits.json").write_text("its own")
    code, _, err = ptmrun("resume", tmp_path / "run")
    assert code == 2
    assert "the data has changed since the run was made" in err
    assert (tmp_path / "run" / "splits.json").read_text() == "its own"


def test_moved_data_are_taken_on_resume(tmp_path, ptmrun):
    for i in range(20):
        draw(tmp_path / "a" / f"cat{i % 2}" / f"{i}.png", size=(8, 8), shade=i)
    words = ["dataset=imagefolder", "dataset.root=a", "dataset.image_size=8", "stage=pretrain"]
    code, _, err = ptmrun(*TINY[2:], *CNN, *words, "pretrain.steps=1", "pretrain.batch_size=8")
    assert code == 0, err
    run = Run.open(latest())
    run.update(status="interrupted")
    (tmp_path / "a").rename(tmp_path / "b")
    code, _, err = ptmrun("resume", latest())
    assert code == 2
    assert f"if that has moved: ptmrun resume {run.folder} dataset.root=PLACE" in err
    code, out, err = ptmrun("resume", latest(), "dataset.root=b")
    assert code == 0, err
    assert "changed: dataset.root: a -> b (where the same data must lie)" in out
    (tmp_path / "b").rename(tmp_path / "c")
    code, _, err = ptmrun("reproduce", latest(), "seed=3")
    assert (code, err) == (
        2,
        "ptmrun: seed: 0 -> 3: only places may change; resume --fork starts a new run with other settings\n",
    )
    code, out, err = ptmrun("reproduce", latest(), "dataset.root=c")
    assert code == 0, err
    assert "bit-exact" in out


def test_training_images_of_one_class_are_refused_at_once(tmp_path, ptmrun):
    """Where a class is so rare that none of it is left to train on."""
    for name, count in (("cat", 40), ("dog", 1)):
        for i in range(count):
            draw(tmp_path / "pets" / name / f"{i}.png", shade=i)
    words = ["dataset=imagefolder", f"dataset.root={tmp_path / 'pets'}", "dataset.limit=10"]
    code, _, err = ptmrun(*TINY[2:], *words, "downstream.labels_per_class=null")
    assert code == 2
    assert err.splitlines()[0] == "ptmrun: stage=all: needs at least two classes; all 9 training images are cat"


def test_output_that_nobody_reads_is_no_error():
    done = subprocess.run(["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash", *command("--help")], capture_output=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_a_run_that_cannot_begin_leaves_no_folder(done_run, ptmrun):
    shutil.copytree(done_run, "outputs/2020-01-01_00-00-00_before", symlinks=True)
    before = sorted(p.name for p in Path("outputs").iterdir())
    code, _, err = ptmrun(*TINY, "downstream.labels_per_class=9000")
    assert code == 2
    assert err.startswith("ptmrun: downstream.labels_per_class=9000: ")
    assert len(err.splitlines()) == 1
    assert sorted(p.name for p in Path("outputs").iterdir()) in (before, [*before, "latest"])
    assert Path("outputs/latest").resolve().name == "2020-01-01_00-00-00_before"
    shutil.rmtree("outputs/2020-01-01_00-00-00_before")
    assert ptmrun(*TINY, "downstream.labels_per_class=9000")[0] == 2
    assert not list(Path("outputs").iterdir())
