"""Fine-tuning methods: what is frozen, what stays as it was, and the rule of BiT."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, HandMade, latest
from torch import nn
from transformers import ViTModel

from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.downstream.classification import Classifier
from ptmrun.errors import UserError
from ptmrun.finetuning import bit_hyperrule, methods
from ptmrun.models import resnet
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.stages import trials
from ptmrun.stages.context import depth_of
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import Trial
from ptmrun.storage import tensor_files
from ptmrun.training import optim
from ptmrun.training.schedule import lr_at
from ptmrun.training.signals import Stop


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(resnet.build(SimpleNamespace(size=10, resize=32), ImageSpec(32, 3), "eager"), 3, 0.0)


def method(name="full", **keys):
    return SimpleNamespace(**{"name": name, "freeze": None, "unfreeze": None} | keys)


def step(model: Classifier) -> tuple[dict, dict]:
    """The state before and after a step of SGD."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss, _ = model({"inputs": torch.randn(6, 3, 32, 32), "labels": torch.arange(6) % 3})
    loss.total.backward()
    optimizer.step()
    return before, dict(model.state_dict())


def changed(before: dict, after: dict) -> set[str]:
    return {k for k in before if not torch.equal(before[k], after[k])}


def test_linear_leaves_every_tensor_of_the_encoder_as_it_was():
    model = classifier()
    assert methods.adapt(model, method("linear"), 1) == (3 * 512 + 3, methods.parameters(model))
    assert changed(*step(model)) == {"head.weight", "head.bias"}


def test_frozen_batch_normalisation_keeps_its_statistics_and_trained_ones_do_not():
    model = classifier()
    methods.adapt(model, method(freeze=["encoder.net.*"], unfreeze=["encoder.net.layer4.*"]), 1)
    found = changed(*step(model))
    assert {k.split(".")[2] for k in found if k.startswith("encoder.")} == {"layer4"}
    statistics = {k for k in model.state_dict() if "running_" in k or "num_batches" in k}
    assert {k for k in statistics if ".layer4." in k} == statistics & found
    assert "encoder.net.layer4.0.bn1.running_mean" in found


def test_patterns():
    model = classifier()
    methods.adapt(model, method("linear", unfreeze=["encoder.net.conv1.weight", "encoder.net.*.bn1.bias"]), 1)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    blocks = {f"encoder.net.layer{i}.0.bn1.bias" for i in range(1, 5)}
    assert trained == {"head.weight", "head.bias", "encoder.net.conv1.weight"} | blocks
    with pytest.raises(UserError, match=r"finetune.freeze=encoder.net.conv1: matches no .*nearest are: encoder.net.conv1.weight"):
        methods.adapt(model, method(freeze=["encoder.net.conv1"]), 1)
    with pytest.raises(UserError, match="leaves nothing to train"):
        methods.adapt(model, method(freeze=["*"]), 1)


@pytest.mark.parametrize(
    ("images", "side", "expected"),
    [
        (1_000, 32, (500, 0.2, 0.0, 128)),
        (19_999, 97, (500, 0.2, 0.0, 384)),
        (20_000, 96, (10_000, 0.05, 0.1, 128)),
        (499_999, 224, (10_000, 0.05, 0.1, 384)),
        (500_000, 224, (20_000, 0.025, 0.1, 384)),
    ],
)
def test_the_rule_of_the_paper(images, side, expected):
    options = compose(["model=bit", "finetune=bit_hyperrule"]).finetune
    changes, notes = bit_hyperrule.decide(options, images, side)
    assert tuple(changes[k] for k in ("steps", "warmup", "mixup", "resolution")) == expected
    assert len(notes) == 4
    assert (options.optimizer, options.lr, options.beta1, options.weight_decay, options.batch_size) == ("sgd", 0.003, 0.9, 0, 512)
    given = ["finetune.steps=50", "finetune.resolution=64", "finetune.warmup=0", "finetune.mixup=0.3"]
    assert bit_hyperrule.decide(compose(["model=bit", "finetune=bit_hyperrule", *given]).finetune, images, side) == ({}, [])


def test_staircase():
    loop = compose(["finetune.schedule=staircase", "finetune.lr=0.003", "finetune.warmup=0.05"]).finetune
    at = {step: lr_at(step, 10_000, loop) for step in (0, 499, 500, 2999, 3000, 5999, 6000, 8999, 9000, 9999)}
    falls = [0.003 / 500, 0.003, 0.003, 0.003, 3e-4, 3e-4, 3e-5, 3e-5, 3e-6, 3e-6]
    assert list(at.values()) == pytest.approx(falls, rel=1e-9)


def test_one_side_only():
    with pytest.raises(UserError, match=r"model=vit finetune=bit_hyperrule: .* there is: model=alexnet, bit, cnn"):
        compose(["finetune=bit_hyperrule"])
    with pytest.raises(
        UserError, match=r"finetune.resolution=64: model=vit works at one side only; there is: model=alexnet, bit"
    ):
        compose(["finetune.resolution=64"])


def test_a_run_by_the_rule(ptmrun):
    argv = [
        *TINY[:2],
        *TINY[9:],
        "model=resnet",
        "stage=finetune",
        "finetune=bit_hyperrule",
        "finetune.steps=3",
        "finetune.seeds=1",
    ]
    code, out, err = ptmrun(
        *argv, "finetune.resolution=40", "finetune.mixup=0.2", "finetune.cutmix=0.5", "finetune.freeze=['*bn1*']"
    )
    assert code == 0, err
    assert "finetune.warmup=0.2: 500 steps, at most a fifth" in out
    options = config_file.load(latest() / "config.yaml").finetune
    assert (options.steps, options.warmup, options.resolution, options.mixup) == (3, 0.2, 40, 0.2)
    tensors = tensor_files.load(latest() / "checkpoints/finetuned/5-tuned-0.safetensors")[0]
    assert "encoder.net.layer1.0.bn2.weight" in tensors
    assert "encoder.net.layer1.0.bn1.weight" not in tensors
    code, _, err = ptmrun("stage=evaluate", f"init={latest()}", *TINY[-4:], "evaluate.baselines=[chance]")
    assert code == 0, err
    code, _, err = ptmrun(*argv, "finetune.resolution=8", "model=alexnet")
    assert code == 2
    assert "finetune.resolution=8: model=alexnet cannot work at it" in err


@pytest.mark.parametrize("method", ["full", "layer_decay", "lora", "linear"])
def test_from_scratch_trains_every_weight_at_one_rate(method):
    cfg = compose([f"finetune={method}", "finetune.freeze=[encoder.*]", "finetune.scratch_lr=2e-3"])
    scratch = trials.finetune_settings(cfg, Trial(10, "scratch", 0), 100)
    if method != "full":
        assert trials.finetune_settings(cfg, Trial(10, "tuned", 0), 100) == cfg.finetune
    assert (scratch.lr, scratch.layer_decay, scratch.freeze) == (2e-3, 1.0, None)
    model = classifier()
    trained, every = methods.adapt(model, scratch, 10)
    assert trained == every
    groups = optim.groups(model, scratch, partial(depth_of, model.encoder), model.encoder.depth + 1)
    assert {g["lr_scale"] for g in groups} == {1.0}


def test_lower_blocks_learn_more_slowly_from_few_labels(tmp_path):
    """With so many that three passes are more than 300 steps of 50, as fast as the others; weights from outside do not."""
    cfg = compose([])

    def decay(cfg, labels):
        return trials.finetune_settings(cfg, Trial(None, "tuned", 0), labels).layer_decay

    assert [decay(cfg, n) for n in (10, 5000, 5001, 60_000)] == [0.75, 0.75, 1.0, 1.0]
    assert decay(compose(["finetune.layer_decay=0.9"]), 60_000) == 0.9
    (tmp_path / "weights.pth").touch()
    assert decay(compose([f"init={tmp_path / 'weights.pth'}"]), 60_000) == 0.75
    with pytest.raises(UserError, match=r"^pretrain\.layer_decay=auto: expected a number"):
        compose(["pretrain.layer_decay=auto"])


def test_the_head_keeps_its_digits_under_autocast():
    """Features that vary by a thousandth of their mean are told apart in bf16 as in fp32."""
    encoder = HandMade()
    encoder.width, encoder.features = 8, lambda x: x
    model = Classifier(encoder, 2, 0.0)
    x = 100 + 0.1 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    model.init_head_from_probe(x, (x[:, 0] > 100).long())
    with torch.autocast("cpu", torch.bfloat16):
        found = model.logits(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.head(x))
    assert ((found.argmax(1) == 1) == (x[:, 0] > 100)).float().mean() > 0.9


def test_a_probe_that_has_seen_dropout_survives_it(ptmrun):
    """AlexNet's features vary little around a large mean; its dropout moves them by as much as the mean."""
    argv = [
        *TINY,
        "model=alexnet",
        "task=supervised",
        "pretrain.steps=2",
        "finetune.seeds=1",
        "finetune.steps=1",
        "finetune.log_every=1",
    ]
    code, _, err = ptmrun(*argv, "evaluate.baselines=[chance]", "stage=all")
    assert code == 0, err
    first = next(x for x in Run.open(latest()).metrics() if x["stage"] == "finetune")
    assert first["loss"] < 4  # without it 100 and more


def test_linear_takes_the_best_rate_on_features_computed_once(done_run, ptmrun, monkeypatch):
    argv = [*TINY[-4:], "finetune=linear", "finetune.steps=60", "finetune.seeds=1", "evaluate.baselines=[chance]"]
    code, _, err = ptmrun("stage=finetune+evaluate", f"init={done_run}", *argv)
    assert code == 0, err
    run = Run.open(latest())
    lines = [x for x in run.metrics() if x["stage"] == "finetune" and x["trial"].endswith("tuned-0")]
    scores = {x["lr"]: x["val_score"] for x in lines}
    assert list(scores) == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1]
    assert len(set(scores.values())) > 1
    assert run.results()["val_score"] == pytest.approx(max(scores.values()))
    assert run.results()["score"] > run.results()["baselines"]["chance"] + 0.2
    assert ptmrun("reproduce", latest())[0] == 0

    def stop(*arguments):  # after the rates were tried, before what they gave is saved
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(methods, "trained", stop)
        assert ptmrun("stage=finetune", f"init={done_run}", *argv[:-1])[0] != 0
    assert ptmrun("resume", latest())[0] == 0
    again = [x for x in Run.open(latest()).metrics() if x["stage"] == "finetune"]
    assert [(x["lr"], x["val_score"]) for x in again] == list(scores.items())


def test_a_classifier_is_in_the_mode_that_it_trains_in():
    """So that what looks at a step (check, replay, budget) sees the step of the loop."""
    cfg = compose([*TINY, "model=resnet", "task=simclr", "finetune=linear"])
    context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
    model, _ = trials.new_model(context, trials.trials(cfg, "tuned", 5)[0])
    assert model.training
    assert not any(m.training for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_fewest_labels_come_first():
    assert trials.label_counts(compose(["downstream.labels_per_class=[100,null,10,10]"])) == [10, 100, None]


def test_the_probe_stays_where_training_harms(done_run, ptmrun):
    """Steps that are far too large: without the rule the score falls, with it the encoder is bit for bit the pretrained one."""
    argv = ["stage=finetune+evaluate", f"init={done_run}", *TINY[-4:], "finetune.lr=0.5", "finetune.steps=20", "finetune.seeds=1"]
    argv.append("evaluate.baselines=[chance]")
    code, _, err = ptmrun(*argv)
    assert code == 0, err
    harmed = Run.open(latest()).results()["val_score"]
    code, out, err = ptmrun(*argv, "finetune.keep_probe=true")
    assert code == 0, err
    run = Run.open(latest())
    judged = next(x for x in run.metrics() if "probe_val_score" in x)
    assert judged["probe_val_score"] == pytest.approx(run.results()["val_score"])
    assert judged["val_score"] == pytest.approx(harmed)
    assert harmed < judged["probe_val_score"] - 0.1
    assert f"the linear probe that it began with is kept: {judged['probe_val_score']:.3f} on held-out images" in " ".join(
        out.split()
    )
    kept = tensor_files.part(tensor_files.load(run.path("checkpoints/finetuned/5-tuned-0.safetensors"))[0], "encoder.vit.")
    before = ViTModel.from_pretrained(done_run / "checkpoints/encoder", add_pooling_layer=False).state_dict()
    assert kept.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in kept.items())
    assert ptmrun("reproduce", latest())[0] == 0


def test_training_stays_where_it_helps(done_run, ptmrun):
    code, out, err = ptmrun(
        "stage=finetune+evaluate",
        f"init={done_run}",
        *TINY[-4:],
        "finetune.steps=300",
        "finetune.lr=2e-3",
        "finetune.augment=0",
        "downstream.labels_per_class=null",
        "finetune.seeds=1",
        "finetune.keep_probe=true",
        "evaluate.baselines=[chance]",
    )
    assert code == 0, err
    judged = next(x for x in Run.open(latest()).metrics() if "probe_val_score" in x)
    assert judged["val_score"] == pytest.approx(Run.open(latest()).results()["val_score"])
    assert judged["val_score"] > judged["probe_val_score"]
    assert "is kept" not in out
