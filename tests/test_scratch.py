"""The baseline from scratch: with how much compute, at which points, and that its branches are what one training would give."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import CNN, TINY, latest
from torch import nn

from ptmrun.compose import compose
from ptmrun.errors import Interrupted, UserError
from ptmrun.loss import Learner, Loss
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, encoder_hash
from ptmrun.stages import compute, scratch
from ptmrun.stages.prepare import prepare
from ptmrun.stages.scratch import Allowance
from ptmrun.stages.trials import Trial
from ptmrun.storage import tensor_files
from ptmrun.training.loop import fit
from ptmrun.training.plan import Plan
from ptmrun.training.schedule import decaying
from ptmrun.training.signals import Stop

RUN = [*TINY, *CNN, "task=simclr", "evaluate.baselines=[scratch]", "finetune.log_every=1", "seed=3"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    cfg = compose([*RUN, f"outputs={tmp_path_factory.mktemp('runs')}"])
    context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
    compute.note_pretraining(context)
    context.encoder().save(context.run.path(ENCODER), *context.processor.preprocessing)
    context.run.update(weights_sha256=encoder_hash(context.run.path(ENCODER)))
    return context


@pytest.fixture
def context(prepared):
    for name in ("state", "logits"):
        shutil.rmtree(prepared.run.path("checkpoints", name), ignore_errors=True)
    prepared.run.path("metrics.jsonl").unlink(missing_ok=True)
    return prepared


def allowance(total: float, tuned: float = 100.0, step: float = 10.0) -> Allowance:
    return Allowance(compute.Fit(tuned, 5, 50), total, True, step, 50)


def test_points_are_shares_of_the_compute_and_that_of_fine_tuning():
    """1600 operations of 10 a step: 160 steps, and a sixteenth, an eighth, a quarter, a half of them; fine-tuning's 100 are
    10."""
    assert allowance(1600.0).points == [10, 20, 40, 80, 160]
    assert allowance(1600.0, tuned=300.0).points == [10, 20, 30, 40, 80, 160]
    assert allowance(1600.0, tuned=300.0).short == 30
    assert allowance(20.0, tuned=1.0).points == [1, 2], "at least a step"


def test_steps_count_the_trunk_once_and_every_branch():
    """Of 160 steps 128 before the decay; decays of 2, 4, 8, 16 and 32."""
    assert allowance(1600.0).steps == 128 + 2 + 4 + 8 + 16 + 32
    assert allowance(1600.0).steps == pytest.approx(160 * scratch.BRANCHED)


def test_the_total_is_what_pretraining_and_fine_tuning_take(context):
    found = scratch.allowance(context, 5)
    pretraining = context.run.manifest["compute"]["pretrain"]
    assert pretraining["steps"] == 12
    assert pretraining["samples"] == 12 * 32
    assert found.total == pretraining["flops"] + found.tuned.flops
    assert found.known
    assert (found.tuned.steps, found.tuned.samples) == (4, 200)
    assert found.points[-1] == round(found.total / found.step)
    assert scratch.allowance(context, 5) == found, "the same whenever it is counted"


def test_of_what_is_not_known_ten_times_fine_tuning(context):
    known = context.run.manifest["compute"]
    try:
        context.run.manifest["compute"] = known | {"before": None}
        found = scratch.allowance(context, 5)
        own = known["pretrain"]["flops"]
        assert not found.known
        assert found.total == max(10 * found.tuned.flops, own + found.tuned.flops)
    finally:
        context.run.manifest["compute"] = known


@pytest.mark.parametrize(
    ("total", "expected"),
    [(1600.0, 1), (8000.0, 1), (200.0, 3)],  # 2 * (1500 + 300) / 1900; 2 * (7900 + 300) / 9500; as many as repeats
)
def test_repeats_follow_from_the_compute(total, expected):
    cfg = SimpleNamespace(evaluate=SimpleNamespace(scratch_repeats="auto"), finetune=SimpleNamespace(seeds=3))
    allowed = {10: allowance(total)}
    once = allowed[10].steps * 10
    assert scratch.repeats(cfg, allowed) == max(1, min(3, int(2 * (total - 100 + 300) / once))) == expected
    assert scratch.repeats(cfg, {n: allowance(8000.0) for n in (1, 4, 10, 100)}) == 1
    cfg.evaluate.scratch_repeats = 2
    assert scratch.repeats(cfg, allowed) == 2
    cfg.evaluate.scratch_repeats = 9
    assert scratch.repeats(cfg, allowed) == 3


def test_the_rate_warms_up_stays_and_decays():
    rate = decaying(1.0, warm=4, begin=8, end=12)
    assert [rate(step) for step in range(8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [rate(step) for step in range(8, 12)] == pytest.approx([1 - (k / 5) ** 0.5 for k in (1, 2, 3, 4)])


class Line(Learner):
    """A linear model with dropout and a buffer, on numbers that the step decides."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(6, 3), nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        self.seen += 1
        return Loss(self.layer(self.dropout(batch["inputs"])).square().sum(), len(batch["ids"])), {}


class Steps:
    def iterate(self, start, stop):
        for step in range(start, stop):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            yield [{"inputs": inputs, "ids": torch.arange(4)}]


def trained(file, steps, rate, **extra):
    """A model after so many steps at this rate, and its plan."""
    torch.manual_seed(0)
    model = Line()
    plan = Plan(
        loop=compose(["pretrain.ema=0.9"]).pretrain,
        steps=steps,
        seed=0,
        purpose="test",
        samples=4,
        batch_size=4,
        depth_of=lambda name: 0,
        depth=1,
        autocast=contextlib.nullcontext,
        file=file,
        metric=lambda line: None,
        cut=lambda step: None,
        stop=lambda: None,
        show=lambda step, values: None,
        rate=rate,
        **extra,
    )
    fit(model, Steps(), plan)
    return model


def test_a_branch_is_what_one_training_gives(tmp_path):
    """With moments, averages and buffers: the trunk up to steps 8 and 16, from each a decay of 2 and of 4 steps."""
    trunk = tmp_path / "trunk.safetensors"
    for begin, steps in ((8, 10), (16, 20)):
        trained(trunk, begin, decaying(0.1, 3, begin, begin), save_last=True)
        rate = decaying(0.1, 3, begin, steps)
        branch = trained(tmp_path / f"{steps}.safetensors", steps, rate, start=trunk)
        whole = trained(tmp_path / f"whole-{steps}.safetensors", steps, rate)
        assert all(torch.equal(a, b) for a, b in zip(branch.state_dict().values(), whole.state_dict().values(), strict=True))
        assert float(branch.seen) == steps


def test_each_point_is_trained_for_its_steps(context):
    """The trunk and each branch, counted in what is logged; nothing is trained twice."""
    allowed = scratch.allowance(context, 5)
    points = scratch.curve(context, Trial(5, "scratch", 3000), allowed)
    assert [point.steps for point in points] == allowed.points
    lines = {}
    for line in context.run.metrics():
        lines.setdefault(line["trial"], []).append(line["step"])
    begins = [scratch.stable(steps) for steps in allowed.points]
    trunk = lines.pop("5-scratch-3000")
    assert trunk == list(range(1, begins[-1] + 1))
    decays = {f"5-scratch-3000-{n}": list(range(b + 1, n + 1)) for n, b in zip(allowed.points, begins, strict=True) if n > b}
    assert lines == decays
    assert len(trunk) + sum(map(len, decays.values())) == allowed.steps
    before = context.run.path("metrics.jsonl").read_bytes()
    again = scratch.curve(context, Trial(5, "scratch", 3000), allowed)
    assert context.run.path("metrics.jsonl").read_bytes() == before
    assert all(torch.equal(a.predictions["logits"], b.predictions["logits"]) for a, b in zip(points, again, strict=True))


def test_an_interrupted_one_goes_on_to_the_same_points(context, monkeypatch):
    """Stopped in the middle of a branch, and once more in the trunk."""
    allowed, trial = scratch.allowance(context, 5), Trial(5, "scratch", 3000)
    whole = scratch.curve(context, trial, allowed)
    for name in ("state", "logits"):
        shutil.rmtree(context.run.path("checkpoints", name), ignore_errors=True)
    calls = 0

    def pending():
        nonlocal calls
        calls += 1
        return 2 if calls in (7, 19, 30) else None

    monkeypatch.setattr(context.stop, "pending", pending)
    interrupted = 0
    while True:
        try:
            found = scratch.curve(context, trial, allowed)
            break
        except Interrupted:
            interrupted += 1
    assert interrupted > 0
    assert [p.val_score for p in found] == [p.val_score for p in whole]
    assert all(torch.equal(a.predictions["logits"], b.predictions["logits"]) for a, b in zip(found, whole, strict=True))


def test_a_point_whose_score_is_not_what_ptmrun_writes_is_refused(context):
    allowed, trial = scratch.allowance(context, 5), Trial(5, "scratch", 3000)
    scratch.curve(context, trial, allowed)
    file = context.run.path(f"checkpoints/logits/5-scratch-3000-{allowed.points[0]}.safetensors")
    for value in ("high", 2.0, None):
        tensor_files.save(file, tensor_files.load(file)[0], {"val_score": value})
        with pytest.raises(UserError, match="its header is not what ptmrun writes there"):
            scratch.curve(context, trial, allowed)


def test_compute_of_a_run_and_of_one_that_starts_from_it(done_run, ptmrun):
    """What the parent's pretraining took is part of what the child's from scratch gets; pretrained on, both count."""
    results = json.loads((done_run / "results.json").read_text())
    pretraining = results["compute"]["pretrain"]
    assert results["compute"]["before"] == 0
    assert results["cpu_s"].keys() == {"pretrain", "5-tuned", "5-scratch"}
    [entry] = results["by_labels"]
    assert entry["verdict"]["compute"]["total"] == pretraining["flops"] + entry["compute"]["tuned"]["flops"]
    assert entry["curve"][-1]["flops"] == pytest.approx(entry["verdict"]["compute"]["total"], rel=0.1)
    quick = ["finetune.seeds=1", "evaluate.baselines=[scratch]"]
    code, out, err = ptmrun("stage=finetune+evaluate", f"init={done_run}", *quick)
    assert code == 0, err
    assert "From scratch at equal compute" in out
    child = json.loads((latest() / "results.json").read_text())
    assert child["compute"] == {"before": pretraining["flops"]}
    assert child["by_labels"][0]["verdict"]["compute"] == entry["verdict"]["compute"]
    code, _, err = ptmrun("stage=pretrain", f"init={done_run}", "pretrain.steps=6")
    assert code == 0, err
    assert compute.spent(Run.open(latest())) == pytest.approx(1.5 * pretraining["flops"])


def test_of_a_parent_that_did_not_count_it_is_not_known(done_run, tmp_path, ptmrun):
    shutil.copytree(done_run, tmp_path / "old")
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["compute"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = ptmrun("stage=finetune+evaluate", "init=old", "finetune.seeds=1", "evaluate.baselines=[scratch]")
    assert code == 0, err
    assert "From scratch with 10 times the compute of fine-tuning (that of the pretraining is not known)" in out
    verdict = json.loads((latest() / "results.json").read_text())["verdict"]
    assert not verdict["compute"]["known"]
    assert verdict["compute"]["total"] == 10 * verdict["compute"]["tuned"]
    assert "earlier pretraining" in out
    assert "not known" in out


def test_an_unfinished_pretraining_counts_as_far_as_it_came(prepared, tmp_path):
    run = Run(tmp_path, {"compute": {"before": 100.0, "pretrain": {"flops": 1000.0, "steps": 12, "samples": 1}}})
    assert compute.spent(run) == 1100
    tensor_files.save(tmp_path / "checkpoints/state/pretrain.safetensors", {}, {"step": 3, "steps": 12})
    assert compute.spent(run) == 350
    run.manifest["compute"]["before"] = None
    assert compute.spent(run) is None
