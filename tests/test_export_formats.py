"""Exports as graphs and as transformers' own models of texts, used without ptmrun."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_text_models
import test_xlnet_and_bart
import torch
from PIL import Image
from test_predict import made
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ptmrun as package
from ptmrun.batch import ImageSpec, Tokens
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.downstream.classification import Classifier
from ptmrun.downstream.multilabel import MultiLabel
from ptmrun.downstream.question_answering.head import Reader
from ptmrun.downstream.token_classification.head import Tagger
from ptmrun.errors import UserError
from ptmrun.exports import library, onnx, pt2
from ptmrun.models import resnet

CLASSES = ["a", "b", "c"]
CPU = torch.device("cpu")
ALONE = """import runpy, sys
sys.modules["ptmrun"] = sys.modules["torch"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")"""


def fresh(kind, pool, task):
    """A text encoder with its head, both with weights larger than at the start."""
    encoder = test_xlnet_and_bart.encoder(kind, pool=pool) if kind == "xlnet" else test_text_models.encoder(kind, pool=pool)
    encoder.trim()
    heads = {"classes": Classifier, "several": MultiLabel, "tags": Tagger}
    model = heads[task](encoder, 3, 0.0) if task in heads else Reader(encoder)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    return model.eval()


def texts(encoder, *lengths):
    """Random ones, padded; of two parts, where the family tells them apart."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(6, 30, mask.shape)
    return Tokens(torch.where(mask, ids, encoder.vocabulary.pad), mask, torch.zeros_like(ids))


def of_texts(encoder, names, classes=CLASSES):
    tokenizer = SimpleNamespace(
        save=lambda folder: None,
        fast=SimpleNamespace(model_input_names=names, model_max_length=encoder.length),
        vocabulary=encoder.vocabulary,
    )
    processor = SimpleNamespace(tokenizer=tokenizer, preprocessing=(tokenizer,), length=encoder.length, pairs=False)
    return SimpleNamespace(processor=processor, classes=classes, device=CPU)


NAMES = ["input_ids", "attention_mask"]
TYPED = [*NAMES, "token_type_ids"]
WHOLE = [
    ("bert", "cls", "classes", TYPED, "BertForSequenceClassification"),
    ("bert", "cls", "several", TYPED, "BertForSequenceClassification"),
    ("bert", "mean", "tags", TYPED, "BertForTokenClassification"),
    ("bert", "mean", "answers", TYPED, "BertForQuestionAnswering"),
    ("gpt", "last", "classes", NAMES, "GPT2ForSequenceClassification"),
    ("gpt", "mean", "tags", NAMES, "GPT2ForTokenClassification"),
    ("gpt", "mean", "answers", NAMES, "GPT2ForQuestionAnswering"),
    ("xlnet", "mean", "tags", TYPED, "XLNetForTokenClassification"),
    ("xlnet", "mean", "answers", TYPED, "XLNetForQuestionAnsweringSimple"),
]


@pytest.mark.parametrize(("kind", "pool", "task", "names", "name"), WHOLE)
def test_whole_models_of_texts(kind, pool, task, names, name):
    model = fresh(kind, pool, task)
    inputs = texts(model.encoder, 9, 4, 7)
    classes = [] if task == "answers" else CLASSES
    written = library.write(of_texts(model.encoder, names, classes), model, Path("out"), inputs)
    assert written.what == name
    assert float(written.ours.std()) > 0.1
    torch.testing.assert_close(written.theirs, written.ours, rtol=1e-4, atol=1e-4)
    config = json.loads(Path("out/config.json").read_text())
    assert config["architectures"] == [name]
    if task != "answers":
        assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_a_mean_has_no_class_in_transformers():
    model = fresh("bert", "mean", "classes")
    assert model.encoder.classifier(model.head, None, CLASSES, "classes") is None
    assert fresh("xlnet", "last", "classes").encoder.classifier(model.head, None, CLASSES, "classes") is None


GRAPHS = [
    (onnx, "bert", "mean", "classes"),
    (onnx, "gpt", "last", "classes"),
    (onnx, "xlnet", "mean", "tags"),
    (pt2, "bert", "mean", "answers"),
]


@pytest.mark.parametrize(("form", "kind", "pool", "task"), GRAPHS)
def test_graphs_of_texts_take_any_number_and_length(form, kind, pool, task):
    model = fresh(kind, pool, task)
    written = form.write(of_texts(model.encoder, TYPED), model, Path("out"), texts(model.encoder, 9, 4, 7))
    torch.testing.assert_close(written.theirs, written.ours, rtol=1e-4, atol=1e-4)
    other = texts(model.encoder, 5, 3, 2, 5, 1)
    with torch.no_grad():
        torch.testing.assert_close(
            written.call(other)[other.mask] if task != "classes" else written.call(other),
            model.outputs(other)[other.mask] if task != "classes" else model.outputs(other),
            rtol=1e-4,
            atol=1e-4,
        )


def test_graph_of_images_and_of_an_encoder_alone():
    options = SimpleNamespace(size=10, resize=32)
    torch.manual_seed(0)
    model = Classifier(resnet.build(options, ImageSpec(24, 3), "eager"), 3, 0.0).eval()
    processor = ImageProcessor(torch.full((3,), 0.5), torch.full((3,), 0.25), CPU, 24)
    networks = SimpleNamespace(processor=processor, classes=CLASSES, device=CPU, starting_encoder=lambda: model.encoder)
    inputs = processor(processor.noise(3))
    written = onnx.write(networks, model, Path("out"), inputs)
    torch.testing.assert_close(written.theirs, written.ours, rtol=1e-4, atol=1e-4)
    features = pt2.write(networks, None, Path("features"), inputs)
    torch.testing.assert_close(features.theirs, features.ours, rtol=1e-4, atol=1e-4)
    assert features.ours.shape == (4, model.encoder.width)
    assert json.loads(Path("features/recipe.json").read_text())["output"] == "features"


def probabilities(lines):
    return [{name: float(share) for name, share in (cell.split("=") for cell in line.split("\t")[1:])} for line in lines]


def test_images_by_onnxruntime_alone(done_run, tmp_path, ptmrun):
    code, out, err = ptmrun("export", done_run, "made", "format=onnx", "--bench")
    assert code == 0, err
    assert "Exported to made: model.onnx. Loaded again: largest difference" in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == ["run", "onnx"]
    card = Path("made/README.md").read_text()
    assert card.startswith("---\nlicense: unknown\nlibrary_name: onnx\npipeline_tag: image-classification\n")
    assert "| pretrained, then fine-tuned | " in card
    for i, mode in enumerate(("L", "RGB", "RGBA")):
        Image.effect_noise((13 + i, 9), 80).convert(mode).save(f"{i}.png")
    paths = [f"{i}.png" for i in range(3)]
    alone = subprocess.run([sys.executable, "-c", ALONE, "made/run.py", *paths], capture_output=True, text=True, check=True)
    ours = [row["probabilities"] for row in package.load(done_run).predict(paths)]
    for mine, theirs in zip(ours, probabilities(alone.stdout.splitlines()), strict=True):
        assert theirs == pytest.approx(mine, abs=2e-4)


def test_texts_by_transformers_and_onnxruntime_alone(tmp_path, ptmrun):
    """Of a BERT with random weights that pools its first token."""
    rows = "".join(f'"{kind} number {i}, indeed",{kind}\n' for i in range(20) for kind in ("good", "bad"))
    Path("reviews.csv").write_text(f"review,label\n{rows}")
    own = ["model=bert", "task=mlm", "model.shape=[32, 1, 2]", "model.length=16", "model.pool=cls"]
    run = made("text_classification", "downstream.root=reviews.csv", "finetune.seeds=1", *own)
    lines = ["good number 3", "a bad one, indeed " * 9, "unheard of"]
    ours = [row["probabilities"] for row in package.load(run).predict(lines)]
    code, out, err = ptmrun("export", run, "whole")
    assert code == 0, err
    assert "Exported to whole: BertForSequenceClassification" in out
    tokenizer, net = AutoTokenizer.from_pretrained("whole"), AutoModelForSequenceClassification.from_pretrained("whole")
    with torch.no_grad():
        shares = net(**tokenizer(lines, truncation=True, padding=True, return_tensors="pt")).logits.softmax(1)
    theirs = [{net.config.id2label[i]: float(x) for i, x in enumerate(row)} for row in shares]
    for mine, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(mine, abs=1e-4)
    assert ptmrun("export", run, "graph", "format=onnx")[0] == 0
    Path("lines.txt").write_text("\n".join(lines) + "\n")
    alone = subprocess.run([sys.executable, "-c", ALONE, "graph/run.py", "lines.txt"], capture_output=True, text=True, check=True)
    for mine, other in zip(ours, probabilities(alone.stdout.splitlines()), strict=True):
        assert other == pytest.approx(mine, abs=2e-4)


def test_what_has_no_graph_is_refused(ptmrun, done_run):
    """XLNet's distances are computed in a way that torch.export does not follow."""
    model = fresh("xlnet", "mean", "tags")
    networks = of_texts(model.encoder, TYPED)
    networks.cfg = SimpleNamespace(model=SimpleNamespace(name="xlnet"))
    with pytest.raises(UserError, match="format=pt2: torch cannot write model=xlnet as one graph"):
        pt2.write(networks, model, Path("out"), texts(model.encoder, 9, 4))
    assert not Path("out").exists()
    code, _, err = ptmrun("export", done_run, "made", "format=tflite")
    assert code == 2
    assert "format=tflite: expected" in err
