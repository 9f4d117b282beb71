"""Models as their libraries' own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTModel

from ptmrun.batch import ImageSpec
from ptmrun.downstream.classification import Classifier
from ptmrun.exports import library
from ptmrun.models import alexnet, bit, convnext, inception, mobilenet, resnet, swin, vit
from ptmrun.storage import tensor_files

MODELS = {
    "resnet": (resnet, 64, {"size": 18, "resize": 64}),
    "resnet10": (resnet, 32, {"size": 10, "resize": 56}),
    "alexnet": (alexnet, 64, {"hidden": 4096, "resize": 64, "dropout": 0.5}),
    "alexnet512": (alexnet, 64, {"hidden": 512, "resize": 64, "dropout": 0.5}),
    "mobilenet": (mobilenet, 64, {"resize": 64}),
    "inception": (inception, 75, {"resize": 75, "dropout": 0.5}),
    "bit": (bit, 64, {"size": "micro", "resize": 64}),
    "swin": (swin, 32, {"size": "micro", "patch": 2, "resize": 32, "drop_path": 0.0}),
    "convnext": (convnext, 32, {"size": "micro", "patch": 2, "drop_path": 0.0}),
    "vit": (vit, 32, {"size": "micro", "patch": 8, "pool": "cls", "dropout": 0.0}),
}
CLASSES = ["a", "b", "c"]


@pytest.mark.parametrize("name", MODELS)
def test_loads_in_the_library_with_the_same_logits(name):
    module, side, options = MODELS[name]
    encoder = module.build(SimpleNamespace(**options), ImageSpec(side, 3), "eager")
    model = Classifier(encoder, 3, 0.0)
    images = torch.randn(4, 3, side, side)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.head.weight.mul_(100)
        model.encoder.features(images)  # random weights need statistics, for features that are not all alike
    processor = SimpleNamespace(preprocessing=([0.5] * 3, [0.25] * 3), tokenizer=None)
    networks = SimpleNamespace(processor=processor, classes=CLASSES, device=torch.device("cpu"))
    _, ours, theirs, call = library.write(networks, model, Path("out"), images)
    torch.testing.assert_close(call(images), theirs)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    assert float(ours.std(0).mean()) > 1e-2
    about = json.loads(Path("out/config.json").read_text())
    inside = encoder.prepare(images)
    with torch.no_grad():
        if about.get("library") == "torchvision":
            known = {}
            exec("\n".join(about["load"]).replace("model.safetensors", "out/model.safetensors"), known)
            logits = known["net"].eval()(inside)
            assert (about["classes"], about["input"]) == (CLASSES, [3, inside.shape[-1], inside.shape[-1]])
            assert bool(about["adapted"]) == (name in ("resnet10", "alexnet512"))
            if name == "inception":
                assert torch.equal(known["net"].AuxLogits.fc.weight, model.auxiliary_head.weight)
        else:
            net = AutoModelForImageClassification.from_pretrained("out").eval()
            logits = net(inside).logits
            assert net.config.id2label == dict(enumerate(CLASSES))
            assert AutoImageProcessor.from_pretrained("out").size["height"] == inside.shape[-1]
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)


def test_export_of_runs(done_run, ptmrun):
    """A ViT that pools its patches has no class in transformers: encoder and head stand apart."""
    code, out, err = ptmrun("export", done_run, "made")
    assert code == 0, err
    assert "Exported to made: the encoder, and its linear head apart" in out
    assert "largest difference 0.0e+00 on 8 test samples" in out
    assert ViTModel.from_pretrained("made", add_pooling_layer=False).config.num_hidden_layers == 3
    tuned = tensor_files.load(done_run / "checkpoints/finetuned/5-tuned-0.safetensors")[0]
    assert torch.equal(tensor_files.load(Path("made/head.safetensors"))[0]["weight"], tuned["head.weight"])
    code, _, err = ptmrun("export", done_run, "made")
    assert (code, err) == (2, "ptmrun: export made: is there already; choose a folder that is not\n")
    settings = [*TINY, "model.pool=cls", "finetune.seeds=1", "stage=finetune", f"init={done_run}", "outputs=o"]
    assert ptmrun(*settings)[0] == 0
    code, out, err = ptmrun("export", "o/latest", "whole")
    assert code == 0, err
    assert "Exported to whole: ViTForImageClassification. Loaded again: largest difference" in out
    assert AutoModelForImageClassification.from_pretrained("whole").config.id2label[9] == "9"
