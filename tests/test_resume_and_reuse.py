"""What may change on resume, what a reused stage depends on, how a budget is divided, and weights that are not finite."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from torch import nn

from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.config import parsing, schema
from ptmrun.errors import UserError
from ptmrun.models import cnn, vit
from ptmrun.runs import changes
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import load_weights
from ptmrun.stages import budget, compute, reuse, scratch
from ptmrun.stages.prepare import prepare
from ptmrun.storage import tensor_files
from ptmrun.training.signals import Stop

HARMLESS = {  # keys that change nothing of what is computed, listed here a second time on purpose
    "skip_done",
    "strict",
    "dataset.cache_gb",
    "device.processes",
    "device.recompute",
    "device.shard",
    "device.workers",
    "finetune.checkpoint_every",
    "finetune.log_every",
    "logger.name",
    "pretrain.checkpoint_every",
    "pretrain.log_every",
    "pretrain.probes",
}
TEXT = {"pretrain.sentences"}
LONGER = {f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("epochs", "steps")}
BASE = compose(["dataset=digits", "pretrain.steps=12", "finetune.steps=4"])


def keys(role, cfg):
    return {key for key in schema.flat(parsing.plain(cfg)) if role in schema.role_of(cfg, key)}


def test_the_keys_that_may_change_on_resume():
    text = compose(["model=bert", "dataset=text", "dataset.root=corpus"])
    assert keys(schema.Role.HARMLESS, BASE) == HARMLESS
    assert keys(schema.Role.HARMLESS, text) == HARMLESS - {"dataset.cache_gb"} | TEXT
    assert keys(schema.Role.LONGER, BASE) == keys(schema.Role.LONGER, text) == LONGER


OTHER = {
    "pretrain__batch_size": 128,
    "pretrain__accumulate": 2,
    "pretrain__lr": 0.5,
    "pretrain__warmup": 0.2,
    "pretrain__ema": 0.9,
    "pretrain__augment": 0.1,
    "pretrain__optimizer": "sgd",
    "pretrain__steps": 11,
    "finetune__batch_size": 8,
    "finetune__seeds": 5,
    "finetune__steps": 3,
    "evaluate__scratch_repeats": 5,
    "dataset__limit": 200,
    "dataset__val_fraction": 0.3,
    "dataset__augment__scale": 0.7,
    "model__dropout": 0.3,
    "device__precision": "bf16",
    "device__threads": 2,
    "on_nan": "stop",
    "seed": 8,
}


@pytest.mark.parametrize("key", OTHER)
def test_what_changes_the_computation_is_refused_on_resume(key, tmp_path):
    dotted = key.replace("__", ".")
    run = SimpleNamespace(path=lambda *parts: tmp_path.joinpath(*parts))
    with pytest.raises(UserError, match=rf"^{dotted}: .* -> {OTHER[key]}: changes what is computed; --fork"):
        changes.allowed(run, BASE, parsing.replace(BASE, **{key: OTHER[key]}))


def test_what_does_not_is_taken(tmp_path):
    run = SimpleNamespace(path=lambda *parts: tmp_path.joinpath(*parts))
    harmless = parsing.replace(BASE, pretrain__log_every=7, device__workers=3, dataset__cache_gb=1.0)
    assert len(changes.allowed(run, BASE, harmless)) == 3
    [line] = changes.allowed(run, BASE, parsing.replace(BASE, pretrain__steps=13))
    assert line.startswith("pretrain.steps: 12 -> 13 (the schedule is stretched")
    (tmp_path / "checkpoints/encoder").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^pretrain.steps: 12 -> 13: that stage is complete"):
        changes.allowed(run, BASE, parsing.replace(BASE, pretrain__steps=13))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("dataset__root", ["dataset=imagefolder", "dataset.root=photos"]),
        (
            "downstream__root",
            ["model=bert", "task=mlm", "dataset=pydoc", "downstream=token_classification", "downstream.root=tags"],
        ),
    ],
)
def test_data_may_lie_elsewhere_on_resume(key, words):
    cfg, dotted = compose(words), key.replace("__", ".")
    [line] = changes.allowed(SimpleNamespace(), cfg, parsing.replace(cfg, **{key: "moved"}))
    assert line == f"{dotted}: {words[-1].split('=')[-1]} -> moved (where the same data must lie)"


def made(cfg=BASE, data="d", **manifest):
    """What `inputs_hash` reads of a run's context."""
    known = {
        "parents": [],
        "weights_sha256": "w",
        "code_sha256": "c",
        "packages": {"torch": "2"},
        "hardware": {"cpu": "x", "cores": 2, "memory_gb": 8.0, "gpu": None, "system": "Linux"},
        "ptmrun": "1",
    }
    run = SimpleNamespace(manifest=known | manifest)
    return SimpleNamespace(cfg=cfg, run=run, data=SimpleNamespace(fingerprint=data, corpus_print=f"corpus of {data}"))


CHANGED = {
    "processor": made(hardware={"cpu": "y", "cores": 2, "memory_gb": 8.0, "gpu": None, "system": "Linux"}),
    "cores": made(hardware={"cpu": "x", "cores": 4, "memory_gb": 8.0, "gpu": None, "system": "Linux"}),
    "accelerator": made(hardware={"cpu": "x", "cores": 2, "memory_gb": 8.0, "gpu": "A100", "system": "Linux"}),
    "packages": made(packages={"torch": "3"}),
    "code": made(code_sha256="d"),
    "data": made(data="e"),
    "weights it starts from": made(parents=[{"weights_sha256": "v"}]),
    "seed": made(parsing.replace(BASE, seed=1)),
    "on_nan": made(parsing.replace(BASE, on_nan="stop")),
    "model": made(parsing.replace(BASE, model__dropout=0.5)),
    "dataset": made(parsing.replace(BASE, dataset__augment__rotate=1.0)),
    "precision": made(parsing.replace(BASE, device__precision="bf16")),
}
OF_ONE_STAGE = {
    "pretrain": made(parsing.replace(BASE, pretrain__batch_size=128)),
    "finetune": made(parsing.replace(BASE, finetune__batch_size=8)),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_stage_is_not_reused_where_something_that_it_depends_on_differs(what):
    for stage in ("pretrain", "finetune"):
        assert reuse.inputs_hash(CHANGED[what], stage) != reuse.inputs_hash(made(), stage), stage


def test_a_stage_is_reused_where_only_others_differ():
    def same(context, stage):
        return reuse.inputs_hash(context, stage) == reuse.inputs_hash(made(), stage)

    for stage, context in OF_ONE_STAGE.items():
        assert {other: same(context, other) for other in OF_ONE_STAGE} == {other: other != stage for other in OF_ONE_STAGE}
    harmless = made(parsing.replace(BASE, pretrain__log_every=7, device__workers=3, name="b"), ptmrun="2")
    tuned = made(weights_sha256="v")
    assert [same(harmless, stage) for stage in OF_ONE_STAGE] == [True, True]
    assert [same(tuned, stage) for stage in OF_ONE_STAGE] == [True, False], "fine-tuning starts from the pretrained weights"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    cfg = compose([*TINY, "model=cnn", "task=simclr", "model.width=8", f"outputs={tmp_path_factory.mktemp('runs')}"])
    return prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())


@pytest.mark.parametrize(
    ("settings", "pretraining", "tuning"),
    [
        # 1000 s, of which 920 are for steps. A step from scratch takes half a second and does as much as two of fine-tuning or of
        # pretraining do: of fine-tuning 2 repeats x 0.5 s + a repeat of (1.1875 + 0.2) / 2 steps x 0.5 s = 1.346875 s a step, of
        # pretraining 0.25 s + 1.1875 / 2 x 0.5 s = 0.546875 s
        ({"finetune__steps": 500}, 552 / 0.546875, 273),  # 673 s wanted, 40 % of the time given
        ({"finetune__steps": 50}, (920 - 50 * 1.346875) / 0.546875, 50),  # pretraining has the rest
        ({"finetune__steps": 274}, 552 / 0.546875, 273),  # 369 s are just too much
        ({"finetune__steps": 500, "evaluate__scratch_repeats": 2}, 552 / 0.84375, 217),  # 1 s + 2 x 0.346875 s a step
        ({"finetune__steps": 500, "evaluate__baselines": ["chance"]}, 552 / 0.25, 368),  # 2 trials: 1 s a step
        ({"finetune__steps": 500, "finetune__seeds": 1, "evaluate__scratch_repeats": 9}, 552 / 0.546875, 434),  # one of each
    ],
)
def test_a_budget_gives_pretraining_three_fifths_or_what_fine_tuning_leaves(prepared, monkeypatch, settings, pretraining, tuning):
    def seconds(context, model, batches, loop, steps=6):
        return 0.25 if loop.section == "pretrain" else 0.5

    monkeypatch.setattr(budget, "seconds_per_step", seconds)
    monkeypatch.setattr(compute, "pretraining", lambda context: compute.Fit(1e6, 10, 0))
    monkeypatch.setattr(compute, "fine_tuning", lambda context, trial: compute.Fit(1e6, 10, 0))
    monkeypatch.setattr(scratch, "step_of", lambda context, labels: (2e5, 50))
    context = copy.copy(prepared)
    context.cfg = parsing.replace(context.cfg, budget="1000s", **settings)
    found, notes = budget.size_steps(context)
    assert (found.pretrain.steps, found.finetune.steps) == (int(pretraining), tuning)
    assert (found.budget, found.pretrain.epochs) == (None, None)
    assert f"pretrain.steps={found.pretrain.steps}: for budget=1000s" in notes


def test_a_step_is_measured_after_the_first_two(prepared, monkeypatch):
    """The median of the others: of all six where they are fast, of the third alone where three took more than 3 seconds."""
    for times, expected in (([9.0, 5.0, 2.0, 1.0, 3.0, 1.0], 2.0), ([0.9, 0.5, 0.2, 0.1, 0.3, 0.1], 0.15)):
        clock = iter(torch.tensor([0.0, *times]).cumsum(0).tolist())
        ends = [next(clock)]
        reads = []

        def thread_time(clock=clock, ends=ends, reads=reads):
            reads.append(None)
            if len(reads) > 1 and len(reads) % 2 == 0:
                ends.append(next(clock))
            return ends[-1]

        monkeypatch.setattr(budget, "time", SimpleNamespace(thread_time=thread_time, perf_counter=None))
        monkeypatch.setattr(budget, "gradients", lambda *_: None)
        steps = SimpleNamespace(iterate=lambda start, stop: ([] for _ in range(start, stop)))
        model = nn.Linear(1, 1)
        model.begin_at = lambda progress: None
        assert budget.seconds_per_step(prepared, model, steps, prepared.cfg.pretrain) == pytest.approx(expected)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200)])
def test_units_of_a_budget(text, seconds):
    assert budget.parse_budget(text) == seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    """By the loader itself, which names the file and the tensor; nothing of it is loaded."""
    layer = nn.Linear(2, 2)
    before = copy.deepcopy(layer.state_dict())
    spoilt = {"weight": torch.ones(2, 2), "bias": torch.tensor([1.0, value])}
    with pytest.raises(UserError, match=r"part\.safetensors: does not fit the model: bias holds NaN or Infinity$"):
        tensor_files.into(layer, spoilt, tmp_path / "part.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    tensor_files.into(layer, spoilt, tmp_path / "part.safetensors", sound=False)  # of `replay`, which looks for the mistake
    assert torch.equal(layer.bias[:1], torch.ones(1))
    large = {"weight": torch.ones(2, 2), "bias": torch.tensor([1.0, 1e300], dtype=torch.float64)}
    with pytest.raises(UserError, match="bias holds NaN or Infinity"):
        tensor_files.into(layer, large, tmp_path / "part.safetensors")


@pytest.mark.parametrize(
    ("family", "options"),
    [(vit, {"size": "micro", "patch": 2, "pool": "mean", "dropout": 0.0}), (cnn, {"width": 8, "hidden": 16})],
)
def test_an_encoder_with_weights_that_are_not_finite_is_refused(family, options):
    cfg = compose(["name=x"])
    run = Run.create(cfg, [], {"parents": []})
    encoder = family.build(SimpleNamespace(**options), ImageSpec(8, 1), "eager")
    folder = run.path("checkpoints/encoder")
    encoder.save(folder, [0.5], [0.5])
    assert load_weights(encoder, run, cfg)
    with torch.no_grad():
        next(iter(encoder.parameters()))[0] = torch.nan
    encoder.save(folder, [0.5], [0.5])
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(UserError, match=r"checkpoints/encoder/model\.safetensors: does not fit the model: .* holds NaN"):
        load_weights(encoder, run, cfg)
    assert all(torch.equal(v.nan_to_num(7), before[k].nan_to_num(7)) for k, v in encoder.state_dict().items())
