"""`ptmrun bench`: its arithmetic, its verdicts, what it refuses, and that both sides of a ratio do the same. No time matters."""

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ptmrun.benchmarks import MISSING, PARTS, clock, data, growth, lightning, loop, processes, profile, start, sweep, trainer
from ptmrun.benchmarks.row import Row, document
from ptmrun.benchmarks.setting import setting
from ptmrun.commands import table
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.training import device

TINY = [
    "dataset=digits",
    "dataset.limit=100",
    "task=mim",
    "model.size=micro",
    "pretrain.steps=3",
    "pretrain.batch_size=8",
    "pretrain.clip=0.1",
]
PAIRS = [[2.0, 1.0], [9.0, 3.0], [4.0, 4.0]]


@pytest.mark.parametrize(
    ("goal", "told"),
    [
        ({"most": 2.0}, "<= 2 reached"),
        ({"most": 1.99}, "<= 1.99 missed"),
        ({"least": 2.0}, ">= 2 reached"),
        ({"least": 2.01}, ">= 2.01 missed"),
        ({}, "no goal"),
    ],
)
def test_the_median_of_the_ratios_is_judged(goal, told):
    row = Row("loop", "a / b", "CPU s", PAIRS, **goal)
    assert row.each == [2, 3, 1]
    assert str(row).endswith(f" 2.000 (1.000 to 3.000) of 4 / 3 CPU s; {told}")


def test_values_alone_and_rows_that_were_not_run():
    assert str(Row("start", "help", "CPU s", [[0.2], [0.4], [0.3]], most=0.25)).endswith(
        " 0.300 (0.200 to 0.400) CPU s; <= 0.25 missed"
    )
    assert str(Row("trainer", "a / b", reason=MISSING)) == f"trainer   a / b: not run: {MISSING}"


def test_a_document_holds_the_rows():
    rows = [Row("loop", "a / b", "CPU s", PAIRS, most=1.0), Row("trainer", "c", reason=MISSING)]
    read = json.loads(json.dumps(document(rows, 0.5), allow_nan=False))
    names = [field.name for field in dataclasses.fields(Row)]
    assert [Row(**{name: row[name] for name in names}) for row in read["rows"]] == rows
    assert read["rows"][0] | {"median": 2, "min": 1, "max": 3, "verdict": "missed", "goal": "<= 1"} == read["rows"][0]
    assert read["rows"][1]["verdict"] == f"not run: {MISSING}"
    assert read["load"][0] == 0.5
    assert read["packages"]["torch"] == torch.__version__.split("+")[0]


def test_the_order_is_swapped_from_pair_to_pair():
    calls = []
    pairs = clock.in_turns(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0, 2)
    assert pairs == [[1.0, 2.0], [1.0, 2.0]]
    assert "".join(calls) == "ab" + "ba" + "ab"
    calls.clear()
    clock.in_turns(lambda: calls.append("a") or 1.0, lambda: calls.append("b") or 2.0, 1, warm=False)
    assert "".join(calls) == "ba"


def test_a_process_whose_parent_has_ended_is_counted():
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}], stdout=subprocess.DEVNULL)"
    assert clock.of_python("-c", orphan) >= 0.5


def test_a_command_that_fails_is_no_measurement():
    with pytest.raises(UserError, match=r"bench: python -c .*: too small"):
        clock.of_python("-c", "import sys; sys.exit('too small')")
    busy = "import sys, time\nwhile time.process_time() < 0.5: pass\nsys.exit(2)"  # the system counts in hundredths of a second
    assert clock.of_python("-c", busy, code=2) > 0


def test_an_unknown_part_is_one_line(ptmrun):
    code, out, err = ptmrun("bench", "loop", "trainre")
    assert (code, out, err) == (2, "", "ptmrun: bench trainre: no such part (did you mean trainer?)\n")


def test_a_file_that_is_there_is_not_replaced(ptmrun):
    Path("speed.json").write_text("{}")
    code, out, err = ptmrun("bench", "loop", "out=speed.json")
    assert (code, out, err) == (2, "", "ptmrun: out=speed.json: is there already; choose a file that is not\n")
    assert Path("speed.json").read_text() == "{}"


def test_every_part_is_a_module_and_told():
    for part in PARTS:
        assert callable(import_module(f"ptmrun.benchmarks.{part}").rows)
    assert f"parts: {' '.join(PARTS)} (" in table.VERBS["bench"].what


def test_a_part_is_measured_and_kept(ptmrun, monkeypatch):
    monkeypatch.setattr(loop, "TASKS", {"mim": TINY})
    monkeypatch.setattr(loop, "SIDE", 32)
    monkeypatch.setattr(device, "known_bf16_speed", lambda *_: 0.5)
    code, out, _ = ptmrun("bench", "loop", "pairs=2", "out=speed.json")
    rows = json.loads(Path("speed.json").read_text())["rows"]
    assert code == 0
    assert [row["name"] for row in rows] == [
        "mim: the loop / a hand-written loop (fp32)",
        "bf16 steps / fp32 steps",
        "mim: a step / a matrix product (fp32)",
    ]
    assert rows[1]["verdict"] == "not run: bf16 products are 0.5 times as fast as fp32 on this processor"
    assert len(out.splitlines()) == 3
    assert all(len(row["values"]) == 2 and row["min"] > 0 for row in rows if not row["reason"])


def trained(way, folder):
    one = setting(TINY)
    way(one, folder)
    return one.objective.state_dict()


@pytest.mark.parametrize("other", [lambda one, folder: one.fit(folder), pytest.param(lightning.train, id="lightning")])
def test_both_sides_take_the_same_steps(other, tmp_path):
    if other is lightning.train:
        pytest.importorskip("lightning")
    torch.testing.assert_close(trained(other, tmp_path), trained(lambda one, folder: one.by_hand(), tmp_path))


def test_shares_are_of_the_whole_step(monkeypatch, tmp_path):
    monkeypatch.setattr(profile, "OBJECTIVES", {"mim": TINY})
    rows = list(profile.rows(1, tmp_path))
    shares = {row.name: row.each[0] for row in rows}
    assert list(shares) == [f"mim: {kind}" for kind in ("making the batch", *profile.KINDS, "the rest")]
    assert sum(shares.values()) == pytest.approx(100)
    assert all(shares[f"mim: {kind}"] > 0 for kind in ("matrix products", "activations", "the optimizer"))


@pytest.mark.parametrize("part", [trainer, lightning])
def test_a_library_that_is_not_there_is_named(part, monkeypatch, tmp_path):
    monkeypatch.setattr(part, "find_spec", lambda name: None)
    [row] = part.rows(1, tmp_path)
    assert row.verdict == "not run: pip install 'ptmrun[bench]'"


def test_starts_are_of_the_command_line(monkeypatch, tmp_path):
    typed = []
    monkeypatch.setattr(start, "of_ptmrun", lambda *words, code=0: typed.append((*words, code)) or 3.0)
    monkeypatch.setattr(start, "of_python", lambda flag, code, *words: 3.0 if words else 2.0)
    first, *others = start.rows(4, tmp_path)
    assert first.each == [1.5] * start.PAIRS
    assert [row.values for row in others] == [[[3.0]] * 4] * 3
    assert {words[0] for words in typed} == {"--help", "model=vitt", "task.mask_rato=0.5"}
    assert typed[-5] == ("model=vitt", 2)


def test_a_start_ends_at_the_first_step(tmp_path):
    words = [*TINY, "stage=pretrain", f"outputs={tmp_path}"]
    assert clock.of_python("-c", start.UNTIL_FIRST_STEP, *words) > 0
    [run] = tmp_path.glob("2*")
    assert not (run / "report.html").exists()
    assert Run.open(run).manifest["status"] == "running"


def test_seconds_of_all_processes_come_from_the_run(monkeypatch, tmp_path):
    typed, seconds = [], iter([3.0, 2.0])
    monkeypatch.setattr(Run, "open", lambda folder: SimpleNamespace(manifest={"cpu_s": {"pretrain": next(seconds)}}))
    monkeypatch.setattr(processes, "of_ptmrun", lambda *words: typed.append(words[-2]))
    [row] = processes.rows(1, tmp_path)
    assert dict(zip(typed, (3.0, 2.0), strict=True)) == {"device.processes=1": 3.0, "device.processes=2": 2.0}
    assert row.values == [[2.0, 3.0]]


def test_the_peer_augments_what_is_the_same(tmp_path):
    data.draw(tmp_path)
    one = setting([*TINY, "dataset=imagefolder", f"dataset.root={tmp_path}", "dataset.image_size=16", "dataset.cache_gb=0"])
    row = data.against("a / b", one, [torch.zeros(3, 16, 16)] * 16, 1)
    assert len(row.values) == 1
    assert [type(step).__name__ for step in data.augmentation(one)[:2]] == ["RandomAffine", "RandomHorizontalFlip"]


@pytest.mark.parametrize("task", ["simmim", "mae"])
def test_the_trainer_learns_the_same(task, tmp_path):
    pytest.importorskip("accelerate")
    words = [*TINY[:2], f"task={task}", *TINY[3:]]
    seconds, losses = trainer.case("tiny", words, 2.0, 1, tmp_path)
    assert (len(seconds.values), seconds.goal, losses.goal) == (1, ">= 2", "no goal")
    assert losses.name.endswith("after 24 images")
    assert losses.each == pytest.approx([1], abs=0.3)  # of three steps each


def test_growth_is_judged_by_the_operations(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "COUNTS", (8, 16))
    monkeypatch.setattr(growth, "IMAGES", TINY)
    sizes = {side: [*TINY, "model.patch=4", f"dataset.image_size={side}"] for side in (8, 16)}
    monkeypatch.setattr(growth, "LARGER", {"pixels a side": sizes})
    samples, side = growth.rows(1, tmp_path)
    assert (samples.name, samples.most) == ("a step on 16 samples / on 8", 1.05)
    operations = setting(sizes[16]).flops() / setting(sizes[8]).flops()
    assert operations > 3
    assert side.most == pytest.approx(1.1 * operations)
    assert side.name == f"16 pixels a side / 8, {operations:.2f} times the operations"


def test_a_job_costs_what_is_beyond_its_work(monkeypatch, tmp_path):
    seconds = {"seed=1": 10.0, "seed=1,2,3": 16.0}  # of which two more jobs are 6
    monkeypatch.setattr(sweep, "of_ptmrun", lambda *words: seconds[words[1]])
    monkeypatch.setattr(sweep, "cpu", lambda work: 2.5)
    monkeypatch.setattr(sweep.run, "run", lambda cfg, words: None)
    [row] = sweep.rows(9, tmp_path)
    assert row.each == [0.5] * start.PAIRS
    assert row.verdict == "reached"
