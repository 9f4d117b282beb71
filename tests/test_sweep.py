"""Sweeps: the grid, the ledger, isolation, resuming, launchers, search."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ptmrun.compose import compose
from ptmrun.errors import UserError
from ptmrun.reports import scores_table
from ptmrun.sweeps import markdown_table, sweep
from ptmrun.sweeps.ledger import Job, Ledger

KILLS = int(os.environ.get("PTMRUN_KILLS", "1"))
SMALL = [
    "dataset=digits",
    "dataset.limit=120",
    "pretrain.steps=4",
    "pretrain.batch_size=32",
    "pretrain.probes=1",
    "finetune.steps=2",
    "finetune.seeds=1",
    "downstream.labels_per_class=2",
    "evaluate.baselines=[chance]",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
    "model=cnn",  # soon imported
    "model.width=8",
    "model.hidden=16",
]


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "ptmrun", *map(str, argv)]


def the_sweep(outputs: str = "outputs") -> Path:
    [folder] = {p.parent.parent for p in Path(outputs).glob("*/*/job.json")}
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    """results.csv without what depends on the clock and on where it lies."""
    with open(folder / "results.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in ("runs", "seconds")} for row in csv.DictReader(file)]


def statuses(folder: Path) -> list[str]:
    return [j.status for j in Ledger(folder).jobs()]


def test_grid_is_every_combination_in_order():
    assert sweep.grid(["task=mae,mim", "seed=1,2", "name=a"]) == [
        ["task=mae", "seed=1", "name=a"],
        ["task=mae", "seed=2", "name=a"],
        ["task=mim", "seed=1", "name=a"],
        ["task=mim", "seed=2", "name=a"],
    ]
    assert sweep.grid(["seed=range(1,4)"]) == [["seed=1"], ["seed=2"], ["seed=3"]]
    assert sweep.grid(["seed=1,1"]) == [["seed=1"]]
    assert sweep.grid(["finetune=choice(full,linear)", "downstream.labels_per_class=[1,2],[3]"])[1] == [
        "finetune=full",
        "downstream.labels_per_class=[3]",
    ]
    with pytest.raises(UserError, match="an interval is searched"):
        sweep.grid(["pretrain.lr=interval(0.1,0.2)"])


def test_an_experiment_brings_its_grid():
    """Keys that the command gives win; combinations that do not fit are no jobs."""
    settings = sweep.parse_settings(["experiment=vision_table"])
    wanted, problems = sweep.combinations(settings, ["experiment=vision_table", "model=resnet,vit", "seed=1"])
    assert not problems
    pairs = [(job[1], job[3]) for job in wanted]
    assert len(pairs) == len(set(pairs))
    assert {task for model, task in pairs if model == "model=resnet"} == {
        f"task={t}" for t in ("supervised", "simclr", "byol", "dino", "simmim")
    }
    assert {task for model, task in pairs if model == "model=vit"} >= {"task=mim", "task=mae", "task=simmim"}
    assert ("model=resnet", "task=mae") not in pairs
    with_error = settings.model_copy(update={"misfits": "error"})
    wanted, problems = sweep.combinations(with_error, ["model=resnet", "task=mae,simclr", "seed=1"])
    assert len(wanted) == 2
    assert list(problems) == [("model=resnet", "task=mae", "seed=1")]
    with pytest.raises(UserError, match="model=nonesuch: no such model"):
        sweep.combinations(settings.model_copy(update={"grid": {"model": ["nonesuch"]}}), ["seed=1"])


def test_a_sweep_over_experiments():
    words = ["experiment=mnist5k_mae,mnist5k_mim", "seed=1,2"]
    settings = sweep.parse_settings([words[0], "sweep.trials=3"])
    assert (settings.trials, settings.grid) == (3, {})
    wanted, problems = sweep.combinations(settings, words)
    assert not problems
    assert [compose(job).task.name for job in wanted] == ["mae", "mae", "mim", "mim"]


def test_a_search_refuses_a_grid_that_it_would_not_look_at(ptmrun):
    words = ["-m", "experiment=vision_table", "sweep.search=optuna", "+model=vit,resnet", "task=simclr"]
    code, _, err = ptmrun(*words)
    assert (code, err) == (2, "ptmrun: sweep.search=optuna: takes no values from sweep.grid; give seed in the command\n")


def test_two_settings_make_a_matrix():
    def row(model: str, task: str, *scores: tuple[float, float]) -> scores_table.Row:
        entries = [
            {"labels_per_class": 5, "scores": {"tuned": {"mean": t}, "scratch": {"mean": 0.5}, "random_frozen": {"mean": s}}}
            for t, s in scores
        ]
        runs = [SimpleNamespace(results=lambda e=e: {"metric": "accuracy", "by_labels": [e]}) for e in entries]
        return scores_table.Row({"model": model, "task": task}, runs)

    rows = [row("a", "x", (0.6, 0.3), (0.8, 0.3)), row("a", "y", (0.9, 0.3)), row("b", "x", (0.4, 0.2))]
    assert markdown_table.markdown(rows) == (
        "Test accuracy, 5 labels per class, fine-tuned (mean ± sd over seeds)\n\n"
        "| model | scratch | x | y |\n| --- | --- | --- | --- |\n"
        "| a | 0.500 ± 0.000 | 0.700 ± 0.141 | **0.900** |\n"
        "| b | 0.500 | **0.400** |  |\n"
    )
    assert markdown_table.markdown([scores_table.Row({"model": m}, rows[i].runs) for i, m in enumerate("ab")]) == (
        "Test accuracy, 5 labels per class (mean ± sd over seeds)\n\n"
        "| model | untrained | scratch | fine-tuned |\n| --- | --- | --- | --- |\n"
        "| a | 0.300 ± 0.000 | 0.500 ± 0.000 | **0.700 ± 0.141** |\n"
        "| b | 0.300 | 0.500 | **0.900** |\n"
    )
    assert markdown_table.markdown([scores_table.Row({"model": "a", "task": "x", "lr": "1"}, rows[0].runs)]) is None


def test_a_table_of_methods_says_how_much_was_trained():
    def row(method: str, count: int) -> scores_table.Row:
        entry = {"labels_per_class": None, "scores": {"tuned": {"mean": 0.5}}}
        results = {"metric": "accuracy", "by_labels": [entry], "parameters": {"trained": count, "all": 2000}}
        return scores_table.Row({"finetune": method}, [SimpleNamespace(results=lambda: results)])

    assert markdown_table.markdown([row("full", 2000), row("lora", 20)]) == (
        "Test accuracy, all labels (mean ± sd over seeds)\n\n"
        "| finetune | trained | fine-tuned |\n| --- | --- | --- |\n"
        "| full | 2,000 (100%) | **0.500** |\n"
        "| lora | 20 (1%) | **0.500** |\n"
    )


BAD = {
    "sweep.resume=nowhere": "sweep.resume=nowhere: no folder of a sweep",
    "sweep.trails=3": "sweep.trails: no such key (did you mean trials?)",
    "sweep.trials=0": "sweep.trials=0: expected greater than or equal to 1",
    "hydra/launcher=nonesuch": "Could not find 'hydra/launcher/nonesuch'",
    "task=mae,mimm": "task=mimm: no such task (did you mean mim?)",
    "task.mask_ratio=2,3": "task.mask_ratio=3: expected less than 1",
    "pretrain.lr=interval(1e-4,1e-2)": "add sweep.search=optuna",
    "+sweep.trials=0": "sweep.trials=0: expected greater than or equal to 1",
    "+sweep.trails=3": "sweep.trails: no such key (did you mean trials?)",
    "experiment=mnist5k_mae,vision_table": "experiment=vision_table: brings settings of a sweep of its own",
}


@pytest.mark.parametrize("argument", BAD)
def test_a_mistake_in_every_job_is_said_at_once(ptmrun, argument):
    code, _, err = ptmrun("-m", "seed=1,2", argument)
    assert code == 2
    assert BAD[argument] in err
    assert "Traceback" not in err
    assert not list(Path().glob("outputs/*/*/job.json"))


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with two good jobs, two that cannot be composed and two that fail: its command, its output and exit code, and the
    seconds that it took."""
    folder = tmp_path_factory.mktemp("swept")
    argv = command("-m", *SMALL[:7], *SMALL[8:], "downstream.labels_per_class=2,0,900", "seed=1,2", "name=s")
    begun = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder)
    return folder, argv, done, time.monotonic() - begun


def test_failures_are_shown_and_the_others_go_on(swept):
    folder, _, done, _ = swept
    assert done.returncode == 1, done.stderr
    assert statuses(the_sweep(folder / "outputs")) == ["done", "done", "failed", "failed", "failed", "failed"]
    said = " ".join(done.stdout.split())
    assert "downstream.labels_per_class=0 seed=1: failed: downstream.labels_per_class=0: expected greater than" in said
    assert "downstream.labels_per_class=900 seed=2: failed: downstream.labels_per_class=900: class" in said
    assert "4 of 6 jobs are not done. Go on with what is missing: ptmrun -m" in said
    assert "Traceback" not in done.stderr
    page = (the_sweep(folder / "outputs") / "report.html").read_text()
    assert "4 of them without a result" in page
    assert "class 0 has" in page, "a reason"
    assert "http:" not in page
    assert "https:" not in page


def test_its_report_can_be_written_again_and_meanwhile(swept, ptmrun):
    folder = the_sweep(swept[0] / "outputs")
    page, job = (folder / "report.html").read_text(), folder / "000" / "job.json"
    before = job.read_text()
    job.write_text(before.replace('"done"', '"running"'))
    assert ptmrun("report", folder)[0] == 0
    assert "5 of them without a result" in (folder / "report.html").read_text()
    assert '"running"' in job.read_text(), "another process may be about to begin it"
    job.write_text(before)
    assert ptmrun("report", folder)[0] == 0
    assert (folder / "report.html").read_text() == page


def test_the_table_is_that_of_the_runs(swept):
    folder, *_ = swept
    ledger = Ledger(the_sweep(folder / "outputs"))
    [row] = table(ledger.folder)
    jobs = ledger.jobs()[:2]
    scores = [json.loads((ledger.run(j).folder / "results.json").read_text())["score"] for j in jobs]
    assert [j.score for j in jobs] == scores
    assert row["downstream.labels_per_class"] == "2"
    assert float(row["2 labels per class mean"]) == pytest.approx(sum(scores) / 2)
    assert float(row["2 labels per class sd"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    assert row["2 labels per class n"] == "2"


def test_resume_runs_only_what_is_missing(swept, ptmrun, monkeypatch):
    folder, argv, *_ = swept
    root = the_sweep(folder / "outputs")
    ledger = Ledger(root)
    before = {p: p.stat().st_mtime_ns for p in root.glob("00[01]/**/*") if p.is_file()}
    made_anew = ledger.write(ledger.job(1), status="queued", score=None)
    assert made_anew.run
    monkeypatch.chdir(folder)
    code, out, _ = ptmrun(*argv[3:], f"sweep.resume={root.relative_to(folder)}")
    assert code == 1
    assert "1 jobs were done before." in out
    assert statuses(root) == ["done", "done", "failed", "failed", "failed", "failed"]
    after = {p: p.stat().st_mtime_ns for p in root.glob("00[01]/**/*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} == {"job.json"}, "a run that is done is not run again"
    assert len(ledger.jobs()) == 6


def test_a_run_whose_folder_is_gone_is_made_anew(tmp_path):
    ledger = Ledger(tmp_path / "s")
    entry = ledger.write(Job(number=0, overrides=[*SMALL, "stage=pretrain"], status="interrupted", run="gone"))
    sweep.job(SimpleNamespace(sweep=SimpleNamespace(folder=str(ledger.folder), job=0, prune=False)))
    entry = ledger.job(0)
    assert (entry.status, entry.run) == ("done", ledger.run(entry).folder.name)
    assert entry.score is not None


def children(pid, *words):
    return [int(x) for x in subprocess.run(["pgrep", "-P", str(pid), *words], capture_output=True, text=True).stdout.split()]


def test_a_job_that_is_killed_does_not_touch_the_others(tmp_path):
    process = subprocess.Popen(command("-m", *SMALL, "stage=pretrain", "seed=1,2"), stdout=subprocess.PIPE, text=True)
    pid = None
    while pid is None:
        assert process.poll() is None
        servers = children(process.pid, "-f", "forkserver")
        jobs = children(servers[0]) if servers and list(Path("outputs").glob("*/000/2*")) else []
        pid = jobs[0] if jobs else None
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 1
    assert statuses(the_sweep()) == ["killed", "done"]
    assert "seed=1: killed: by SIGKILL (out of memory?)" in " ".join(out.split())


def good(argv: list[str]) -> list[str]:
    """The command of `swept` with its two good jobs only."""
    return [a for a in argv if not a.startswith("downstream")] + ["downstream.labels_per_class=2"]


def good_table(folder: Path) -> list[dict[str, str]]:
    """The table of these, which does not name what they have in common."""
    return [{k: v for k, v in row.items() if k != "downstream.labels_per_class"} for row in table(folder)]


def test_ctrl_c_saves_and_resume_ends_with_the_same_table(swept, tmp_path):
    """SIGINT, or kill -9 of the whole process group, at random moments, and resumed: the table of an undisturbed sweep."""
    folder, argv, _, seconds = swept
    words = [*good(argv), "outputs=wild"]
    chance, resume, signals = random.Random(1), [], [signal.SIGINT, *[signal.SIGKILL] * KILLS]
    for signum in signals:
        process = subprocess.Popen([*words, *resume], stdout=subprocess.PIPE, start_new_session=True)
        try:
            process.communicate(timeout=seconds * chance.uniform(0.1, 0.3))
        except subprocess.TimeoutExpired:
            if signum == signal.SIGKILL:
                os.killpg(process.pid, signum)
            else:
                process.send_signal(signum)
            out, _ = process.communicate(timeout=60)
            assert process.returncode in (130, -signum), out  # the latter when it has hardly begun
        if Path("wild").exists() and list(Path("wild").glob("*/*/job.json")):
            resume = [f"sweep.resume={the_sweep('wild')}"]
    assert subprocess.run([*words, *resume], capture_output=True).returncode == 0
    assert table(the_sweep("wild")) == good_table(the_sweep(folder / "outputs"))
    assert statuses(the_sweep("wild")) == ["done"] * 2


def test_joblib_gives_the_same_scores(swept):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, argv, *_ = swept
    words = [*good(argv), "outputs=parallel", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert table(the_sweep(folder / "parallel")) == good_table(the_sweep(folder / "outputs"))


def test_sigterm_lets_jobs_of_other_processes_save_and_begins_no_more(tmp_path):
    """Behind a shell's `&`, where SIGINT is ignored, too."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*SMALL, "seed=range(6)", "pretrain.steps=100000", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    ignoring = ["bash", "-c", 'trap "" INT; exec "$@"', "bash", *command("-m", *words)]
    process = subprocess.Popen(ignoring, stdout=subprocess.PIPE, text=True)
    while len(list(Path("outputs").glob("*/00[01]/2*/metrics.jsonl"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert statuses(the_sweep()) == ["interrupted"] * 2 + ["queued"] * 4
    ledger = Ledger(the_sweep())
    assert not any(ledger.alive(job) for job in ledger.jobs())
    assert all(ledger.run(job).manifest["status"] == "interrupted" for job in ledger.jobs()[:2])


def test_a_launcher_that_is_not_installed(ptmrun, monkeypatch):
    monkeypatch.setattr(sweep, "EXTRAS", ("nonesuch",))
    _, _, err = ptmrun("-m", "seed=1,2", "hydra/launcher=nonesuch")
    assert err == "ptmrun: hydra/launcher=nonesuch: not installed; pip install 'ptmrun[nonesuch]'\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a job of a sweep"),
        ('{"number": 0, "overrides": ["a=1"], "status": "fine"}', "status: Input should be"),
        ('{"number": 7, "overrides": ["a=1"]}', "says it is job 7"),
        ('{"number": 0, "overrides": ["a=1"], "run": "../../x"}', "run: String should match"),
        ('{"number": 0, "overrides": ["a=1"], "score": NaN}', "not valid JSON"),
    ],
)
def test_a_spoilt_ledger_is_refused(tmp_path, text, expected):
    path = tmp_path / "s" / "000" / "job.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Ledger(tmp_path / "s").jobs()
    assert expected in str(caught.value)


def test_a_ledger_does_not_follow_links(tmp_path):
    ledger = Ledger(tmp_path / "s")
    job = ledger.write(Job(number=0, overrides=["a=1"]))
    (tmp_path / "s" / "000" / "latest").symlink_to("/tmp")
    assert ledger.run(job) is None
    (tmp_path / "s" / "001").symlink_to(tmp_path)
    (tmp_path / "job.json").write_text('{"number": 1, "overrides": []}')
    with pytest.raises(UserError, match="a link; refused"):
        ledger.jobs()


LINKS = ["000/stderr.txt", "results.csv", "report.html"]  # which are replaced


@pytest.mark.parametrize("names", [[".lock"], [".launcher"], ["001"], ["000/job.json"], LINKS], ids=lambda names: names[0])
def test_resuming_a_hostile_sweep_writes_nothing_outside(tmp_path, ptmrun, names):
    """Links in a sweep's folder are refused or replaced, and a path in an entry is refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    bad = ["model=cnn", "dataset=imagefolder", "dataset.root=nowhere"]
    Ledger(tmp_path / "s").write(Job(number=0, overrides=[*bad, "seed=1"]))
    for path in [tmp_path / "s" / name for name in names]:
        path.unlink(missing_ok=True)
        path.symlink_to(outside if path.name in (".launcher", "001") else outside / "precious")
    code, _, err = ptmrun("-m", *bad, f"seed=1{',2' * ('001' in names)}", f"sweep.resume={tmp_path / 's'}")
    assert code == (1 if names == LINKS else 2), err
    assert "Traceback" not in err
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert (outside / "precious").read_text() == "precious"


def test_optuna_searches_prunes_and_goes_on(ptmrun):
    optuna = pytest.importorskip("optuna")
    words = [*SMALL, "stage=pretrain", "pretrain.lr=tag(log,interval(1e-4,1e-2))", "task=simclr,byol", "sweep.search=optuna"]
    words = ["-m", *words, "sweep.trials=1"]
    code, _, err = ptmrun(*words)
    assert code == 0, err
    code, _, err = ptmrun(*words[:-1], "sweep.trials=2", f"sweep.resume={the_sweep()}")
    assert code == 0, err
    jobs = Ledger(the_sweep()).jobs()
    assert [j.trial for j in jobs] == [0, 1]
    study = optuna.load_study(study_name="ptmrun", storage=f"sqlite:///{the_sweep()}/optuna.db")
    assert [t.value for t in study.trials] == [j.val_score for j in jobs]
    for trial, job in zip(study.trials, jobs, strict=True):
        assert 1e-4 <= trial.params["pretrain.lr"] <= 1e-2
        assert f"pretrain.lr={trial.params['pretrain.lr']!r}" in job.overrides
        assert f"task={trial.params['task']}" in job.overrides


def test_a_search_leaves_the_jobs_of_a_grid_alone(tmp_path, ptmrun):
    pytest.importorskip("optuna")
    grid = Ledger(tmp_path / "s")
    grid.write(Job(number=0, overrides=["seed=1"], status="done", score=0.9))
    argv = ["-m", *SMALL, "stage=pretrain", "pretrain.lr=interval(1e-4,1e-2)", "sweep.search=optuna"]
    code, _, err = ptmrun(*argv, f"sweep.resume={grid.folder}")
    assert code == 2
    assert err == f"ptmrun: sweep.resume={grid.folder}: holds the jobs of a grid; a search needs a folder of its own\n"
    assert grid.job(0).score == 0.9


def test_a_hopeless_trial_is_pruned(tmp_path):
    optuna = pytest.importorskip("optuna")
    from ptmrun.sweeps import search

    study = optuna.create_study(study_name="ptmrun", storage=search.storage(tmp_path), direction="maximize")
    for _ in range(search.FIRST):
        trial = study.ask()
        trial.report(0.8, 100)
        study.tell(trial, 0.8)
    for probe, expected in ((0.9, False), (0.5, True)):
        pruner = search.Pruner(tmp_path, study.ask().number)
        assert pruner.hopeless([{"stage": "pretrain", "step": 100, "probe_linear": probe}]) is expected


def test_difference_and_noise():
    """Welch's t against scipy's own interval; a gap inside of it is marked."""
    from scipy import stats

    a, b = [0.90, 0.92, 0.91], [0.88, 0.91, 0.86]
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    from ptmrun.reports import significance

    assert significance.of_seeds(a, b) == pytest.approx((interval.high - interval.low) / 2)
    assert significance.of_seeds([0.9], [0.8]) is None
    assert scores_table.Cell(0.9, 0.01, 3, 0.0, None).words == "best"
    assert scores_table.Cell(0.9, 0.01, 3, -0.02, 0.03).words == "-2.0, within noise (3.0)"
    assert scores_table.Cell(0.9, 0.01, 3, -0.04, 0.03).words == "-4.0"
    assert re.fullmatch(r"-4\.0, noise unknown", scores_table.Cell(0.9, None, 1, -0.04, None).words)
