"""Exports as graphs and as transformers' own models of texts, used without ptmrun."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
from ptmrun.downstream import detection, segmentation
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.classification import Classifier
from ptmrun.downstream.multilabel import MultiLabel
from ptmrun.downstream.question_answering.head import Reader
from ptmrun.downstream.token_classification.head import Tagger
from ptmrun.errors import UserError
from ptmrun.exports import library, onnx, pt2, recipe
from ptmrun.exports.graph import Graph
from ptmrun.models import cnn, resnet

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


def alone(folder, paths):
    """The cells of what run.py prints, without ptmrun and torch."""
    command = [sys.executable, "-c", ALONE, f"{folder}/run.py", *paths]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in made.stdout.splitlines()]


def probabilities(lines):
    return [{name: float(share) for name, share in (cell.split("=") for cell in line[1:])} for line in lines]


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
    made_alone = alone("made", paths)
    ours = [row["probabilities"] for row in package.load(done_run).predict(paths)]
    for mine, theirs in zip(ours, probabilities(made_alone), strict=True):
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
    made_alone = alone("graph", ["lines.txt"])
    for mine, other in zip(ours, probabilities(made_alone), strict=True):
        assert other == pytest.approx(mine, abs=2e-4)


def of_pictures(problem, size, facts, **options):
    """Networks with a problem of three classes, and its model on a small CNN with random weights that are not all unsure."""
    torch.manual_seed(0)
    encoder = cnn.build(SimpleNamespace(width=8, hidden=16), ImageSpec(size, 3), "eager")
    processor = ImageProcessor(torch.full((3,), 0.5), torch.full((3,), 0.25), CPU, size)
    setup = ProblemSetup(CLASSES, SimpleNamespace(**options), processor, facts)
    model = problem.PROBLEM.build(encoder, setup, SimpleNamespace(label_smoothing=0.0)).eval()
    for name, parameter in model.head.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
        elif parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        if name.endswith("cls_logits.bias"):
            torch.nn.init.constant_(parameter, -2.0)
    return SimpleNamespace(processor=processor, classes=CLASSES, device=CPU, problem_setup=setup), model


def pictures():
    """Three, of which one has transparency; their names."""
    sizes = {"wide.png": ("RGB", (150, 64)), "tall.png": ("L", (40, 90)), "clear.png": ("RGBA", (64, 64))}
    for i, (name, (mode, size)) in enumerate(sizes.items()):
        Image.effect_noise(size, 60 + 20 * i).convert(mode).save(name)
    return list(sizes)


def of_problem(problem, networks, model, paths):
    """The rows of `ptmrun predict`."""
    opened = problem.PROBLEM.opened(paths, networks.problem_setup)
    split = problem.PROBLEM.unlabelled(opened, networks.problem_setup)
    predictions = model.predict([networks.processor(batch) for batch in split.all()])
    return problem.PROBLEM.answer_rows(predictions, split, CLASSES, 5)


def same_boxes(rows, lines, paths):
    """Of `ptmrun predict` and of run.py."""
    assert len(lines) > 20
    for path, row in zip(paths, rows, strict=True):
        own = [line for line in lines if line[0] == path]
        assert [line[1] for line in own] == row["classes"]
        assert [float(line[2]) for line in own] == pytest.approx(row["scores"], abs=2e-3)
        assert [[float(x) for x in line[3:]] for line in own] == [pytest.approx(box, abs=0.1) for box in row["boxes"]]


def test_boxes_by_onnxruntime_alone():
    networks, model = of_pictures(detection, 64, {"categories": [1, 2, 3], "tile": 64, "overlap": 0.2}, detector="fcos")
    inputs = networks.processor(networks.processor.noise(3))
    same = pt2.write(networks, model, Path("graph"), inputs)
    torch.testing.assert_close(same.theirs, same.ours, rtol=1e-4, atol=1e-4)
    written = onnx.write(networks, model, Path("out"), inputs)
    torch.testing.assert_close(written.theirs, written.ours, rtol=1e-4, atol=1e-4)
    assert written.ours.shape == (4, sum(model.counts), 3 + 4)
    assert float(written.ours.std()) > 0.1
    paths = pictures()
    same_boxes(of_problem(detection, networks, model, paths), alone("out", paths), paths)


@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize("detector", ["fcos", "retinanet"])
def test_boxes_of_outputs_are_those_of_predict(monkeypatch, capsys, detector, tile):
    """The script of an export, with the model itself in the place of its graph."""
    networks, model = of_pictures(detection, 64, {"categories": [1, 2, 3], "tile": tile, "overlap": 0.2}, detector=detector)
    inputs = networks.processor(networks.processor.noise(3))
    Path("out").mkdir()
    recipe.write(networks, model, Graph(networks, model, inputs), Path("out"))
    script = shutil.copyfile(recipe.script(networks, model), "out/run.py")

    class Session:
        def __init__(self, path):
            pass

        @torch.no_grad()
        def run(self, names, given):
            return [model.outputs(torch.from_numpy(given["inputs"])).numpy()]

    paths = pictures()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=Session))
    monkeypatch.setattr(sys, "argv", [script, *paths])
    runpy.run_path(script, run_name="__main__")
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    same_boxes(of_problem(detection, networks, model, paths), lines, paths)


def test_masks_by_onnxruntime_alone():
    networks, model = of_pictures(segmentation, 48, {"palette": [[0, 0, 0], [9, 8, 7], [1, 200, 3]]}, head="fcn")
    inputs = networks.processor(networks.processor.noise(3))
    same = pt2.write(networks, model, Path("graph"), inputs)
    torch.testing.assert_close(same.theirs, same.ours, rtol=1e-4, atol=1e-4)
    written = onnx.write(networks, model, Path("out"), inputs)
    torch.testing.assert_close(written.theirs, written.ours, rtol=1e-4, atol=1e-4)
    assert written.ours.shape == (4, 3, 48, 48)
    paths = pictures()
    rows, lines = of_problem(segmentation, networks, model, paths), alone("out", paths)
    for path, row, line in zip(paths, rows, lines, strict=True):
        assert probabilities([line])[0] == pytest.approx(row["shares"], abs=2e-3)
        with Image.open(f"{Path(path).stem}_mask.png") as mask:
            assert mask.getpalette()[:9] == row["pictures"]["mask"].getpalette()[:9]
            assert (np.asarray(mask) == np.asarray(row["pictures"]["mask"])).mean() > 0.998


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
