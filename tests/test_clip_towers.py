"""CLIP whose towers begin with weights of earlier runs, or from outside."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import latest
from pairs import loaded
from texts import part
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from ptmrun import rng
from ptmrun.batch import ImageSpec, TextSpec
from ptmrun.compose import compose
from ptmrun.config import parsing
from ptmrun.data.text import tokenizer_training
from ptmrun.errors import UserError
from ptmrun.models import bert as bert_family
from ptmrun.models import cnn, lstm, pretrained, vit
from ptmrun.runs import config_file, provenance
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, PROCESSOR, START, TRAINED_ON
from ptmrun.stages import compute, initial_weights, part_weights, prepare
from ptmrun.stages.networks import family_of
from ptmrun.storage import tensor_files
from ptmrun.training.signals import Stop

CAPTIONS = ["a red circle on the left", "two small blue rings", "a large green star at the top", "three black crosses"]
TINY = [
    "model=clip",
    "dataset.drawings=1",
    "dataset.limit=60",
    "dataset.test_limit=40",
    "dataset.image_size=32",
    "pretrain.steps=2",
    "pretrain.batch_size=16",
    "pretrain.probes=0",
    "stage=pretrain",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


def made(encoder, preprocessing, *overrides, **model):
    """A run folder with the weights of an encoder, as a pretraining leaves it."""
    cfg = compose([*overrides, "stage=pretrain", "device=cpu"])
    cfg = parsing.replace(cfg, **{f"model__{k}": v for k, v in model.items()})
    run = Run.create(cfg, [], provenance.manifest([]))
    if tokenizer := next((x for x in preprocessing if hasattr(x, "fast")), None):
        run.path(PROCESSOR).mkdir(parents=True)
        tokenizer.save(run.path(PROCESSOR))
    encoder.save(run.path(ENCODER), *preprocessing)
    run.update(status="done", compute={"before": 1.0, "pretrain": {"flops": 41.0, "steps": 1, "samples": 1}})
    return run


def image_run():
    rng.seed_everything(7, "test")
    options = {"size": "micro", "patch": 2, "pool": "cls", "dropout": 0.0}
    encoder = vit.build(SimpleNamespace(**options), ImageSpec(8, 1), "sdpa")
    return made(encoder, ([0.25], [0.5]), "model=vit", "dataset=digits", **options), encoder


def own_tokenizer(family):
    return tokenizer_training.train("wordpiece" if family is bert_family else "bpe", 300, family.FRAMING, part(CAPTIONS * 3))


def text_run(length=12):
    rng.seed_everything(8, "test")
    tokenizer = own_tokenizer(bert_family)
    options = {"size": "tiny", "shape": [32, 1, 2], "initial": "library", "pool": "cls", "dropout": 0.0}
    encoder = bert_family.build(SimpleNamespace(**options), TextSpec(tokenizer.vocabulary, length), "sdpa")
    own = {"length": length, "vocabulary": tokenizer.vocabulary.size}
    return made(encoder, (tokenizer,), "model=bert", **options, **own), encoder


def prepared(run):
    return prepare.prepare(run, config_file.load(run.path("config.yaml")), Stop())


def test_a_run_begins_with_the_towers_of_two_runs_and_needs_them_no_more():
    (image, seen), (text, read) = image_run(), text_run()
    tensor_files.save(image.path(TRAINED_ON), {"ids": torch.tensor([1])})
    cfg = part_weights.by_folder(compose([*TINY, f"model.image_init={image.folder}", f"model.text_init={text.folder}"]))
    run = Run.create(cfg, [], provenance.manifest([]))
    context = prepared(run)
    cfg = config_file.load(run.path("config.yaml"))
    assert {"patch:2", "pool:cls"} <= set(cfg.model.image_options)
    assert "shape:[32, 1, 2]" in cfg.model.text_options
    assert cfg.dataset.normalise == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert cfg.model.length == 12  # captions are longer, and places of 12 tokens are known
    assert cfg.model.vocabulary == read.vocabulary.size
    out = run.path("log.txt").read_text()
    assert "patch embeddings: from gray to colour" in out
    assert "of the captions that are trained on, and the weights know places of no more" in out
    start = context.starting_encoder().state_dict()
    for name, value in seen.state_dict().items():
        if "position" not in name and "patch" not in name:
            assert torch.equal(start[f"image.{name}"], value), name
    assert torch.equal(start["text.net.bert.pooler.dense.weight"], read.net.bert.pooler.dense.weight)
    assert not any("predictions" in name for name in start)
    scratch = context.encoder("scratch", 1).state_dict()
    assert not torch.equal(scratch["text.net.bert.pooler.dense.weight"], read.net.bert.pooler.dense.weight)
    parents = run.manifest["parents"]
    assert [p["run"] for p in parents] == [image.folder.name, text.folder.name]
    assert parents[1]["weights_sha256"] == tensor_files.sha256(tensor_files.part(start, "text."))
    assert run.manifest["compute"]["before"] == 84
    assert tensor_files.load(run.path(TRAINED_ON))[0]["image"].tolist() == [1]
    # the sources change, and go: another run does not begin with them, this one goes on
    changed = {k: v + 1 for k, v in tensor_files.load(image.path(ENCODER, "model.safetensors"))[0].items()}
    tensor_files.save(image.path(ENCODER, "model.safetensors"), changed)
    again = Run.create(cfg, [], provenance.manifest([]) | {"parents": parents})
    with pytest.raises(UserError, match=r"^model\.image_init=.*: its weights are not those that the run began with; refused$"):
        prepared(again)
    shutil.rmtree(image.folder)
    shutil.rmtree(text.folder)
    after = prepared(run).starting_encoder().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in start.items())
    tensor_files.save(run.path(START), {**after, "image.vit.layernorm.bias": after["image.vit.layernorm.bias"] + 1})
    with pytest.raises(UserError, match="its weights have changed since the run began; refused"):
        prepared(run)


def test_a_run_with_towers_is_reproduced(ptmrun):
    image, text = image_run()[0], text_run()[0]
    code, _, err = ptmrun(*TINY, f"model.image_init={image.folder}", f"model.text_init={text.folder}")
    assert code == 0, err
    code, out, err = ptmrun("reproduce", latest())
    assert code == 0, err
    assert "bit-exact" in out


def test_a_run_that_goes_on_knows_what_the_towers_were_trained_on(ptmrun):
    """Test images that a tower had seen are named by the run that begins with it, and by one that begins with that."""
    (image, _), words = image_run(), [word for word in TINY if word.startswith("dataset")]
    seen = loaded("dataset=shapes", *words).test.images.contents[[3]]
    tensor_files.save(image.path(TRAINED_ON), {"ids": seen})
    code, out, err = ptmrun(*TINY, f"model.image_init={image.folder}")
    assert code == 0, err
    assert f"Warning: {image.folder} was trained on 1 of the 40 test" in out
    first = latest()
    code, out, err = ptmrun(*TINY[1:], f"init={first}")
    assert code == 0, err
    assert f"Warning: outputs/{first.name} was trained on 1 of the 40 test" in out


def settled(*overrides):
    """What `settle_parts` makes of a new run's config: (config, notes, longest)."""
    cfg = part_weights.by_folder(compose(["model=clip", *overrides]))
    return part_weights.settle_parts(Run.create(cfg, [], provenance.manifest([])), cfg)


def tower(cfg, name, spec):
    """That part with its weights, and the notes on them."""
    own = part_weights.begun(cfg)[name]
    options = own.options.model_copy(update=own.family.resolve(own.options, spec)[0])
    encoder = own.family.build(options, spec, "sdpa").eval()
    return encoder, part_weights.load(own, encoder)[1]


def test_folders_of_the_library_bring_their_settings_and_tokenizer():
    ViTModel(ViTConfig(image_size=16, patch_size=4, hidden_size=96, num_hidden_layers=3, num_attention_heads=3)).save_pretrained(
        "v"
    )
    with open("v/preprocessor_config.json", "w") as file:
        json.dump({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, file)
    tokenizer = own_tokenizer(bert_family)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    theirs = BertModel(BertConfig(vocab_size=tokenizer.vocabulary.size, max_position_embeddings=16, **sizes)).eval()
    theirs.save_pretrained("b")
    tokenizer.save("b")
    cfg, notes, longest = settled("model.image_init=v", "model.text_init=b", "model.text_options=[pool:cls]")
    assert cfg.model.image_options == ["size:micro", "patch:4"]
    assert cfg.model.text_options == ["pool:cls", "shape:[32, 1, 2]"]
    assert cfg.model.tokenizer == "b"
    assert cfg.dataset.normalise == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert longest == 16
    assert "model.tokenizer=b: of model.text_init=b" in notes
    encoder, _ = tower(cfg, "text", TextSpec(tokenizer.vocabulary, 16))
    ids = torch.randint(5, tokenizer.vocabulary.size, (2, 16))
    tokens = SimpleNamespace(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), types=torch.zeros_like(ids), documents=None)
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(tokens), theirs(ids).pooler_output, rtol=1e-5, atol=1e-5)
    assert family_of(cfg).fitting(cfg.model, 30) == 32
    assert compute.of_parent(cfg) is None
    assert compute.of_parent(compose(["model=clip"])) == 0
    assert not [line for line in settled("model.text_init=b", "model.tokenizer=b")[1] if "Warning" in line]
    assert initial_weights.as_published(compose(["model=bert", "init=b"]))[2] == 16
    with pytest.raises(UserError, match=r"^model\.length=17: b knows 16 positions; expected at most 16$"):
        settled("model.text_init=b", "model.length=17")
    assert "the weights of model.text_init=b are of the tokens" in settled("model.text_init=b", "model.tokenizer=bpe")[1][-1]


def test_families_of_this_project_take_the_weights_of_runs():
    tokenizer = own_tokenizer(lstm)
    options = {"size": "tiny", "bidirectional": False, "pool": "mean", "dropout": 0.0}
    encoder = lstm.build(SimpleNamespace(**options), TextSpec(tokenizer.vocabulary, 20), "sdpa")
    run = made(encoder, (tokenizer,), "model=lstm", **options, length=20)
    cfg, _, longest = settled("model.text=lstm", f"model.text_init={run.folder}", "model.length=40")
    assert longest is None  # it has no positions
    again, [note] = tower(cfg, "text", TextSpec(tokenizer.vocabulary, 40))
    assert note.endswith("the weights of that run")
    assert torch.equal(again.embedding.weight, encoder.embedding.weight)
    tensor_files.save(run.path("w.safetensors"), encoder.state_dict())
    cfg, *_ = settled("model.text=lstm", f"model.text_init={run.path('w.safetensors')}")
    with pytest.raises(UserError, match="model=lstm takes the weights of runs only"):
        tower(cfg, "text", TextSpec(tokenizer.vocabulary, 40))
    net = cnn.build(SimpleNamespace(width=8, hidden=16, resize=8), ImageSpec(8, 1), "sdpa")
    torch.save(net.net.state_dict(), "cnn.pth")
    cfg, *_ = settled("model.image=cnn", "model.image_options=[width:8,hidden:16]", "model.image_init=cnn.pth")
    assert cfg.dataset.normalise == list(pretrained.normalisation("cnn.pth", cnn.FAMILY))


def test_what_a_tower_cannot_begin_with_is_one_line(tmp_path):
    run, _ = image_run()
    for overrides, expected in {
        ("model.image=cnn", f"model.image_init={run.folder}"): "is a run of model=vit; expected one of model=cnn",
        ("model.image_init=none",): "model.image_init=none: no such run folder",
        ("model.image_init=none.pth",): r"model\.image_init=none\.pth: no such file",
        (f"model.text_init={run.folder}",): f"model.text_init={run.folder}: is a run of model=vit; expected one of model=bert",
        ("init=x.pth", f"model.image_init={run.folder}"): r"init=x\.pth has weights for all of the model; leave one out",
    }.items():
        with pytest.raises(UserError, match=expected):
            tower(settled(*overrides)[0], "image", ImageSpec(16, 3))
    assert settled("model.image_init=random")[1] == []
    link = tmp_path / "newest"
    link.symlink_to(run.folder.resolve())
    assert settled(f"model.image_init={link}")[0].model.image_init == str(run.folder)
    cfg, *_ = settled(f"model.image_init={run.folder}", "model.image_options=['size:mini']")
    with pytest.raises(UserError, match="does not fit the model"):
        tower(cfg, "image", ImageSpec(16, 3))
    shutil.rmtree(run.path(ENCODER))
    with pytest.raises(UserError, match=r"that run has no checkpoints/encoder: it is not pretrained"):
        settled(f"model.image_init={run.folder}")


def test_pairs_know_images_and_captions_that_towers_were_trained_on():
    data = loaded("dataset=shapes", "dataset.drawings=1", "dataset.limit=60", "dataset.test_limit=20")
    seen = data.test.part_seen("image", data.test.images.contents[[3]])
    assert seen.nonzero()[:, 0].tolist() == [3]
    ids = data.test.texts.group_ids[data.test.starts[5] + 1]
    assert data.test.part_seen("text", ids[None])[5]
    assert not data.test.part_seen("text", torch.tensor([1])).any()
