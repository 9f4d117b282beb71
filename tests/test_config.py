"""The command line and the config: every mistake is one line, found before torch is imported."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptmrun import cli
from ptmrun.commands.table import VERBS
from ptmrun.compose import compose
from ptmrun.config import choices, compatibility, parsing, schema, specs
from ptmrun.errors import UserError
from ptmrun.runs import config_file
from ptmrun.training.schedule import steps_of

MISTAKES = {
    "model=vitt": "model=vitt: no such model (did you mean vit?)",
    "+experiment=typo": "experiment=typo: no such experiment",
    "dataset=mnsit": "dataset=mnsit: no such dataset (did you mean mnist?)",
    "pretrain.epoch=3": "pretrain.epoch: no such key (did you mean epochs?)",
    "batch_size=3": "batch_size: no such key (did you mean pretrain.batch_size or finetune.batch_size?)",
    "task.mask_rato=0.5": "task.mask_rato: no such key (did you mean mask_ratio?)",
    "+new=1": "new: no such key",
    "seed=abc": "seed=abc: expected integer",
    "seed=-1": "seed=-1: expected greater than or equal to 0",
    "pretrain.epochs=-3": "pretrain.epochs=-3: expected greater than 0",
    "pretrain.epochs=nan": "pretrain.epochs=nan: expected a finite number",
    "pretrain.steps=auto": "pretrain.steps=auto: expected a number",
    "pretrain.lr=inf": "pretrain.lr=inf: expected a finite number",
    "pretrain.lr=fast": "pretrain.lr=fast: expected number",
    "task.mask_ratio=1": "task.mask_ratio=1: expected less than 1",
    "model.size=huge": "model.size=huge: expected 'auto' or 'micro'",
    "dataset.augment.flip=3": "dataset.augment.flip=3: expected boolean",
    "dataset.augment=3": "dataset.augment=3: expected dictionary",
    "downstream.labels_per_class=[]": "downstream.labels_per_class=[]: expected",
    "downstream.labels_per_class=[5,0]": "downstream.labels_per_class.1=0: expected greater than or equal to 1",
    "name=../x": "name=../x: expected letters, digits",
    "budget=soon": "budget=soon: expected a number and s, m or h",
    "model=vit,other": "several values are a sweep, which needs -m",
    "stage=evaluate": "stage=evaluate: needs init=<run folder>",
    "init=nowhere": "nowhere: no such run folder",
    "pretrain.accumulate=300": "pretrain.accumulate=300: expected at most pretrain.batch_size=256",
    "hydra.run.dir=x": "settings of hydra and sweep need -m",
    "evaluate.baselines=[luck]": "evaluate.baselines.0=luck: expected 'chance'",
    "seed=[1": "expected key=value",
    "resumee": "no such verb (did you mean resume?)",
    "--fast": "--fast: no such option",
    "-sc": "-sc: expected install=SHELL",
    "name=": "name=: expected",
    "dataset.name=cifar10": "dataset.name=cifar10: the name comes with the choice; type dataset=cifar10",
    "=3": "=3: expected key=value; the key is missing",
    "pretrain.lr=${oc.env:NOT_THERE}": "NOT_THERE",
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_one_line(ptmrun, argument):
    code, out, err = ptmrun("seed=1", argument) if "=" in argument else ptmrun(argument)
    assert code == 2
    assert out == ""
    assert MISTAKES[argument] in err
    assert len(err.splitlines()) == 1, err


def test_all_mistakes_at_once(ptmrun):
    code, _, err = ptmrun("model=vitt", "seed=x", "pretrain.epoch=1", "task.mask_ratio=2")
    assert code == 2
    assert [line.split(":")[1].split("=")[0].strip() for line in err.splitlines()] == [
        "model",
        "pretrain.epoch",
        "task.mask_ratio",
        "seed",
    ]


def test_misfit_lists_what_fits(monkeypatch):
    def spec(group, name):
        none = frozenset()
        return specs.Spec(None, none, frozenset({"images"}), frozenset({"tokens"} if name == "mlm" else none), {}, {}, {}, {})

    monkeypatch.setattr(specs, "spec", spec)
    monkeypatch.setattr(choices, "names", lambda group: ["mlm", "mae"])
    [line] = compatibility.incompatible({"model": "resnet", "task": "mlm"})
    assert (
        line
        == "model=resnet task=mlm: the task needs tokens, which the model does not have; with model=resnet there is: task=mae"
    )


def test_no_torch_and_under_a_second():
    """A mistake, the help and --cfg job are answered without torch, a choice that is none and the help without Hydra and
    pydantic too; CPU time of the whole process is bounded generously."""
    code = "import sys; from ptmrun import cli; c = cli.run(sys.argv[1:]); assert not {*%r} & {*sys.modules}; sys.exit(c)"
    slow = ("torch", "hydra", "pydantic", "rich")
    quick = (([], 0), (["--help"], 0), (["model=vitt", "task=mim"], 2))
    others = ((["model=vitt", "seed=1"], 2), (["--cfg", "job"], 0), (["help", "vit"], 0))
    for argv, expected, absent in [*((*case, slow) for case in quick), *((*case, ("torch",)) for case in others)]:
        start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run([sys.executable, "-c", code % (absent,), *argv], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start < 5


def test_a_choice_that_is_none_is_one_line_however_it_is_typed():
    """Where all words are plain choices without Hydra, else with all other mistakes."""
    lines = ["model=vitt: no such model (did you mean vit?)", "task=mimm: no such task (did you mean mim?)"]
    assert choices.unknown(["model=vitt", "task=mimm"]) == lines
    assert choices.unknown(["model=vit", "experiment=null"]) == []
    assert choices.unknown(["model=vitt", "seed=1"]) == choices.unknown(["'model'=vitt"]) == []
    for words in (["model=vitt", "task=mimm"], ["+model=vitt", "task=mimm", "seed=x"]):
        with pytest.raises(UserError) as raised:
            compose(words)
        assert set(lines) <= {*raised.value.args}


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_waiting_threads_sleep_early_unless_told_otherwise(monkeypatch, given, spins):
    monkeypatch.setattr(os, "environ", dict(given))
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_help_lists_every_choice(ptmrun):
    code, out, _ = ptmrun("--help")
    assert code == 0
    for group in choices.GROUPS:
        for name in choices.names(group):
            assert f"    {name:<15} {choices.summary(group, name)}" in out
    for verb in VERBS:
        assert f"ptmrun {verb} " in out


@pytest.mark.parametrize("group", [g for g in choices.GROUPS if g != "experiment"])
def test_every_choice_composes(group):
    for name in choices.names(group):
        fits = []
        if group in ("task", "finetune", "downstream"):
            needs = specs.spec(group, name).requires | (specs.spec(group, name).needs - {"labels"})
            fits = [
                f"model={m}"
                for m in choices.names("model")
                if needs <= specs.spec("model", m).provides | specs.spec("model", m).needs
            ]
        elif group == "dataset":
            models = {"text": "bert", "audio": "wav2vec2", "pairs": "dalle"}
            fits = [f"model={m}" for kind, m in models.items() if kind == specs.kind(name)]
        parsed = compose([*fits[-1:], f"{group}={name}"])
        assert getattr(parsed, group).name == name
        for key in specs.spec(group, name).types:
            assert hasattr(getattr(parsed, group), key)


def test_every_experiment_composes():
    for name in choices.names("experiment"):
        assert isinstance(compose([f"experiment={name}"]), schema.Config)


def test_cfg_job_reads_back(ptmrun, tmp_path):
    _, out, _ = ptmrun("--cfg", "job", "task=mae", "pretrain.lr=1e-4")
    (tmp_path / "config.yaml").write_text(out)
    read = config_file.load(tmp_path / "config.yaml")
    assert (read.task.name, read.pretrain.lr, read.task.mask_ratio) == ("mae", 1e-4, 0.75)
    assert parsing.plain(read) == yaml.safe_load(out)


def test_weights_from_outside_are_trained_more_gently_unless_a_rate_is_given():
    own, published = compose(["model=bert"]), compose(["model=bert", "init=pretrained"])
    assert (own.finetune.lr, own.finetune.scratch_lr) == (3e-3, None)
    assert published.finetune.lr == own.finetune.published_lr
    assert published.finetune.scratch_lr == 1e-3  # of a large network from random weights
    assert compose(["model=bert", "init=pretrained", "finetune.scratch_lr=2e-3"]).finetune.scratch_lr == 2e-3
    assert published.pretrain.lr == own.pretrain.published_lr
    typed = compose(["model=bert", "init=pretrained", "finetune.lr=1e-3"])
    assert (typed.finetune.lr, typed.finetune.scratch_lr) == (1e-3, 1e-3)
    rule = compose(["model=bit", "init=pretrained", "finetune=bit_hyperrule"]).finetune  # SGD's, made for such weights
    assert (rule.lr, rule.scratch_lr) == (3e-3, None)
    again = compose(["seed=3"], typed)  # as when a run is resumed
    assert again.finetune.lr == 1e-3


@pytest.mark.parametrize(("labels", "steps"), [(8, 300), (1000, 300), (5000, 300), (5001, 301), (100_000, 6000)])
def test_steps_follow_from_the_number_of_labels(labels, steps):
    assert steps_of(compose([]).finetune, labels) == steps
    assert steps_of(compose(["finetune.steps=7"]).finetune, labels) == 7


def test_steps_take_the_place_of_epochs():
    assert (compose(["pretrain.steps=5"]).pretrain.epochs, compose(["pretrain.steps=5"]).pretrain.steps) == (None, 5)
    assert compose(["finetune.epochs=2"]).finetune.steps is None
    typed = compose(["experiment=fashion_few_labels", "pretrain.epochs=5"]).pretrain  # which brings 8000 steps
    assert (typed.epochs, typed.steps) == (5, None)
    with pytest.raises(UserError, match=r"pretrain\.epochs, pretrain\.steps: set exactly one"):
        compose(["experiment=fashion_few_labels", "pretrain.epochs=5", "pretrain.steps=9"])


def test_frozen():
    parsed = compose([])
    with pytest.raises(ValueError, match="frozen"):
        parsed.seed = 3


def test_saved_config_runs_no_code(tmp_path):
    good = parsing.dump(compose([]))
    bad = {
        "stage: all\n_target_: os.system\n": "_target_: no such key",
        "stage: ${oc.env:HOME}\n": "interpolation ${oc.env:HOME}",
        "stage: !!python/object/apply:os.system ['true']\n": "not a plain YAML file",
        "- a list\n": "expected a mapping",
        "": "expected a mapping",
        "stage: [unclosed\n": "not a plain YAML file",
    }
    for text, expected in bad.items():
        text = good.replace("stage: all\n", text) if text.startswith("stage: all") else text
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError) as caught:
            config_file.load(tmp_path / "config.yaml")
        assert expected in str(caught.value)
    (tmp_path / "config.yaml").write_text(good.replace("name: mim", "name: ../../mim"))
    with pytest.raises(UserError, match="no such task"):
        config_file.load(tmp_path / "config.yaml")


def test_keys_that_are_newer_than_a_saved_config_take_their_defaults_and_it_says_so(tmp_path, capsys):
    """As composed with what else is saved: statistics follow from `init`."""
    whole = parsing.plain(compose(["init=pretrained", "model=mobilenet", "finetune=lora", "seed=7"]))
    older = {k: dict(v) if isinstance(v, dict) else v for k, v in whole.items() if k != "on_nan"}
    older["finetune"] = {k: v for k, v in whole["finetune"].items() if k not in ("statistics", "rank")}
    older["dataset"]["augment"] = {k: v for k, v in whole["dataset"]["augment"].items() if k != "flip"}
    (file := tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert parsing.plain(config_file.load(file)) == whole
    said = capsys.readouterr().err
    assert said.startswith(f"ptmrun: {file}: of an older version")
    added = ["finetune.statistics=kept", "finetune.rank=8", "dataset.augment.flip=false", "on_nan=recover"]
    assert all(setting in said for setting in added)
    config_file.load(file)
    assert not capsys.readouterr().err  # once
    file.write_text(yaml.safe_dump(older | {"seed": -1}))
    with pytest.raises(UserError, match="seed=-1: expected"):
        config_file.load(file)
    file.write_text(yaml.safe_dump({k: v for k, v in older.items() if k != "pretrain"}))
    with pytest.raises(UserError, match="pretrain: missing"):
        config_file.load(file)


KEYS = [f"{a}.{b}" for a, part in parsing.plain(compose([])).items() if isinstance(part, dict) for b in part] + [
    "seed",
    "stage",
]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=st.sampled_from(["-1", "0", "1e9", "abc", "null", "[1]", "true", "nan", "{a: 1}", "''"]))
def test_any_value_is_taken_or_refused_in_lines(key, value):
    try:
        assert isinstance(compose([f"{key}={value}"]), schema.Config)
    except UserError as error:
        mistakes = error.args
    else:
        mistakes = ()
    assert all(line and "\n" not in line for line in mistakes)


@pytest.mark.parametrize(
    ("words", "there", "settings"),
    [
        ("resume outputs/lr=0.1", "", ""),
        ("resume ./lr=0.1 seed=3", "", "seed=3"),
        ("resume lr=0.1", "lr=0.1", ""),
        ("resume lr=0.1 seed=3", "lr=0.1 seed=3", "seed=3"),
        ("resume outputs/latest lr=0.1", "lr=0.1", "lr=0.1"),
        ("resume lr=0.1 outputs/latest", "lr=0.1", "lr=0.1"),
        ("compare a=1 b=2 outputs=there", "a=1 b=2", "outputs=there"),
        ("compare model=vit,lr=1/0 model=vit,lr=2/1 x", "model=vit,lr=1/0 model=vit,lr=2/1", ""),
        ("export /runs/a=b/c out=1/d merge=true", "out=1/d", "merge=true"),
        ("export a=1 b=2 merge=true", "a=1", "b=2 merge=true"),
        ("list lr=0.1 status=done", "lr=0.1", "status=done"),
        ("list status=done", "", "status=done"),
        ("check model=vit seed=1", "model=vit", "model=vit seed=1"),
        ("generate x=1 prompt=a=b", "x=1", "prompt=a=b"),
    ],
)
def test_folders_whose_names_look_like_settings(words, there, settings):
    verb, *words = words.split()
    for name in there.split():
        Path(name).mkdir(parents=True)
    assert cli.sorted_words(VERBS[verb], words) == (settings.split(), [w for w in words if w not in settings.split()])
