"""The first ten minutes: the first screen, help for a word, a study of one's own, what a training says of its time."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from ptmrun.commands import screens, table
from ptmrun.compose import compose
from ptmrun.config import choices, keys, schema, specs
from ptmrun.runs import progress, provenance
from ptmrun.stages.context import place_of


@pytest.fixture
def own(monkeypatch):
    """Choices of the user's that a test adds are gone after it."""
    monkeypatch.setenv(choices.CONFIG_DIR, "")
    yield
    os.environ.pop(choices.CONFIG_DIR, None)
    choices.files.cache_clear()


def test_the_first_screen_is_one_and_needs_no_torch():
    code = "import sys; from ptmrun import cli; c = cli.run(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert all(f"  ptmrun {verb} " in done.stdout for verb in table.VERBS if verb != "help")
    assert all(group in done.stdout for group in choices.GROUPS)


def test_a_group_a_choice_a_verb_and_a_key(ptmrun):
    code, out, _ = ptmrun("help", "model")
    assert code == 0
    assert all(f"  {name} " in out for name in choices.names("model"))
    code, out, _ = ptmrun("help", "vit")
    assert code == 0
    assert out.startswith("model=vit\nVision Transformer")
    assert "  model.dropout=0  " in out
    assert "[number ≥ 0, ≤ 1]" in out
    assert "\n      side of a patch in pixels; auto: a grid of about 4x4" in out
    assert "task= byol, dino, mae, mim, simclr, simmim, supervised\n" in out
    assert ptmrun("help", "model=vit")[1] == out == ptmrun("help", "model", "vit")[1]
    assert ptmrun("help", "predict")[1] == ptmrun("predict", "--help")[1]
    code, out, _ = ptmrun("help", "pretrain.lr")
    assert out.startswith("pretrain.lr\n  type     number > 0\n  default  0.002\n  meaning  learning rate at its highest\n")
    assert "0.01 (model=lstm)" in out
    assert "pretrain.lr\n" in ptmrun("help", "lr")[1]
    assert "finetune.lr\n" in ptmrun("help", "lr")[1]
    assert "  pretrain.probes=5 " in ptmrun("help", "pretrain")[1]
    assert ptmrun("help") == ptmrun()
    assert "task=clm  dataset=pydoc" in ptmrun("help", "gpt")[1]


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["vitt"], "(did you mean vit?)"),
        (["pretrain.lrr"], "(did you mean pretrain.lr?)"),
        (["predct"], "(did you mean predict?)"),
        (["model=vti"], "model=vti: no such model (did you mean vit?)"),
        (["a", "b"], "help: expected one word"),
    ],
)
def test_unknown_words_get_a_near_one(ptmrun, words, near):
    code, out, err = ptmrun("help", *words)
    assert (code, out) == (2, "")
    assert near in err
    assert len(err.splitlines()) == 1


def test_every_key_has_a_type_and_a_meaning():
    explained = {key.name: key for key in keys.common()}
    for group in choices.GROUPS:
        for name in choices.names(group):
            explained |= {f"{group}={name} {key.name}": key for key in keys.own(group, name)}
    lacking = [name for name, key in explained.items() if not key.type or not key.meaning]
    assert not lacking


def test_keys_of_one_kind_of_data_say_so():
    meanings = {key.name: key.meaning for key in keys.common()}
    assert meanings["pretrain.document_mask"].endswith("(of text)")
    assert "(of images" in meanings["dataset.augment.flip"]
    assert not meanings["pretrain.lr"].endswith(")")


def test_every_key_of_a_run_is_explained():
    named = {key.name for key in keys.common()}
    for section in (*schema.BASES, "sweep"):
        types = [schema.Sweep] if section == "sweep" else [schema.base(section, kind) for kind in ("", *schema.KINDS)]
        fields = {f"{section}.{key}" for kind in types for key in kind.model_fields} - {f"{section}.name", "sweep.grid"}
        own = {
            key.name for name in (choices.names(section) if section in choices.GROUPS else []) for key in keys.own(section, name)
        }
        nested = {name.rpartition(".")[0] for name in named}
        assert fields <= named | own | nested


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("auto|count", "auto | whole number ≥ 1"),
        ("null|count|[null|count]", "null | whole number ≥ 1 | list of null | whole number ≥ 1"),
        ("ratio", "number > 0, < 1"),
        ("flag", "true or false"),
        ("10|text", "10 | text"),
    ],
)
def test_types_in_words(kind, words):
    assert keys.in_words(specs.parse_type(kind)) == words


def test_comments_of_a_file():
    text = "a:            # of the block\n  b: '#'      # goes on\n              # below\n  c: 1\n# of none\nd: [1, 2]  # last\n"
    assert keys.comments(text) == {"a": "of the block", "a.b": "goes on below", "d": "last"}


def test_a_study_of_ones_own(ptmrun, tmp_path, own):
    code, out, err = ptmrun("new", "my_study")
    assert (code, err) == (0, "")
    assert "ptmrun --config-dir conf check experiment=my_study" in out
    assert ptmrun("new", "my_study")[0] == 2
    os.chdir("my_study")
    commands = [line.split() for line in (tmp_path / "my_study/run.sh").read_text().splitlines() if line.startswith("ptmrun")]
    assert len(commands) == 2
    file = tmp_path / "my_study/conf/experiment/my_study.yaml"
    file.write_text(file.read_text().replace("steps: 600", "steps: 77"))
    code, out, err = ptmrun("--config-dir", "conf", "--cfg", "job", "experiment=my_study", "seed=3")
    assert code == 0, err
    saved = yaml.safe_load(out)
    assert (saved["pretrain"]["steps"], saved["name"], saved["seed"]) == (77, "my_study", 3)
    assert "my_study: a study of my own" in ptmrun("--config-dir=conf", "--help")[1]
    assert ptmrun("help", "my_study")[0] == 0


@pytest.mark.parametrize("name", ["two words", "../up/..", "-x"])
def test_a_study_needs_a_name(ptmrun, name):
    assert ptmrun("new", name)[0] == 2


def test_choices_built_on_those_that_there_are(ptmrun, tmp_path, own):
    """A run has the name of what they are built on, and is read again without the folder."""
    (tmp_path / "mine/dataset").mkdir(parents=True)
    (tmp_path / "mine/dataset/photos.yaml").write_text(
        "# @package _global_\n# My photos\ndefaults: [imagefolder, _self_]\ndataset: {root: photos, image_size: 48}\nseed: 4\n"
    )
    before = provenance.code_hash()
    choices.add_folder(tmp_path / "mine")
    assert provenance.code_hash() == before
    cfg = compose(["dataset=photos"])
    assert (cfg.dataset.name, cfg.dataset.root, cfg.dataset.image_size, cfg.seed) == ("imagefolder", "photos", 48, 4)
    assert compose(["dataset=photos", "seed=5"]).seed == 5
    assert "dataset=photos\nMy photos" in ptmrun("help", "photos")[1]
    code, _, err = ptmrun("model=bert", "dataset=photos")
    assert code == 2
    assert "the data has no text" in err


@pytest.mark.parametrize(
    ("place", "text", "line"),
    [
        ("dataset/x.yaml", "# @package _global_\ndataset: {root: a}\n", "expected the choice that it is built on"),
        ("dataset/x.yaml", "defaults: [imagefolder]\n", "expected # @package _global_ as its first line"),
        ("dataset/x.yaml", "# @package _global_\ndefaults: [imagefolder]\ndataset: {name: x}\n", "dataset.name: leave it out"),
        ("dataset/x.yaml", "# @package _global_\ndefaults: [hub]\ndataset: {spec: {module: x}}\n", "dataset.spec: leave it out"),
        ("dataset/x.yaml", "# @package _global_\na: [\n", "not a YAML file"),
        ("datasets/x.yaml", "", "no such group (did you mean dataset?)"),
        ("dataset/hub.yaml", "# @package _global_\ndefaults: [imagefolder]\n", "is in ptmrun and "),
        ("readme.txt", "", "holds no choices"),
    ],
)
def test_what_is_wrong_with_an_own_folder(ptmrun, tmp_path, own, place, text, line):
    (tmp_path / "mine" / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "mine" / place).write_text(text)
    code, out, err = ptmrun("--config-dir", "mine", "dataset=digits", "--cfg", "job")
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_is_not_there(ptmrun, own):
    assert "--config-dir gone: no such folder" in ptmrun("--config-dir", "gone", "seed=1")[2]
    assert "--config-dir: expected a folder" in ptmrun("seed=1", "--config-dir")[2]


def test_a_bar_says_how_long_a_training_will_take(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    run = SimpleNamespace(silent=True, say=lines.append, note=lines.append)
    values = {"loss": 1.0, "samples_per_s": 10.0, "data_wait": 0.0}
    with progress.Bar(run, "stage 1 of 3: pretrain", 100, after=0.5) as bar:
        bar.show(0, {})
        now[0] = 20.0
        bar.show(10, values)
        now[0] = 200.0
        bar.show(100, values)
    said = "loss 1  10 samples/s  data-wait 0%"
    assert lines == [
        f"stage 1 of 3: pretrain 10/100  about 3 min to go in this training and 2 min after it  {said}",
        f"stage 1 of 3: pretrain 100/100  {said}",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "about 4 s"), (89, "about 89 s"), (600, "about 10 min"), (7200, "about 2.0 h")]
)
def test_time_in_words(seconds, text):
    assert progress.to_go(seconds).startswith(f"{text} to go")


def test_the_place_of_a_stage(monkeypatch):
    def context(stage):
        return SimpleNamespace(cfg=SimpleNamespace(stage=stage), problem=SimpleNamespace(trains=True))

    assert place_of(context("finetune+evaluate"), "evaluate") == "stage 2 of 2: "
    assert place_of(context("pretrain"), "pretrain") == ""


def test_what_a_verb_does_in_a_clause():
    assert screens.brief(table.VERBS["list"]) == "the runs with status, score, age and size"
