"""The convolutional and hierarchical encoders against the libraries' own networks and the published sizes."""

import functools
import importlib

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torchvision import models
from transformers import AutoImageProcessor

from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.downstream.classification import Classifier
from ptmrun.reports import attribution
from ptmrun.storage import tensor_files

FAMILIES = ["cnn", "alexnet", "vgg", "resnet", "inception", "mobilenet", "bit", "swin", "convnext"]
OF_TRANSFORMERS = {"bit": "BitModel", "swin": "SwinModel", "convnext": "ConvNextModel"}


@functools.cache
def settings(*overrides: str):
    return compose(list(overrides)).model


def build(name: str, side: int, channels: int = 3, **options):
    """An encoder in evaluation mode, with what is auto resolved for the image size."""
    module = importlib.import_module(f"ptmrun.models.{name}")
    chosen = settings(f"model={name}", *(f"model.{k}={v}" for k, v in options.items()))
    changes, _ = module.resolve(chosen, ImageSpec(side, channels))
    torch.manual_seed(0)
    return module.build(chosen.model_copy(update=changes), ImageSpec(side, channels), "sdpa").eval()


def images(side: int, channels: int = 3, count: int = 2):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def stirred(encoder):
    """Statistics, scales and biases other than their initial ones, so that a swapped or a left-out layer shows."""
    generator = torch.Generator().manual_seed(2)
    for name, value in encoder.net.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand(value.shape, generator=generator) + (0.0 if name.endswith("bias") else 0.5))
    return encoder


@pytest.mark.parametrize(
    ("name", "options", "widths", "side", "published"),
    [
        ("alexnet", {}, [4096], 6, 61_100_840),  # torchvision's documentation, here and below
        ("vgg", {"size": 16, "batch_norm": "false"}, [4096], 7, 138_357_544),
        ("resnet", {"size": 18}, [512], 7, 11_689_512),
        ("mobilenet", {}, [1280], 7, 3_504_872),
        ("resnet", {"size": 34}, [512], 7, 21_797_672),
        ("resnet", {"size": 50}, [2048], 7, 25_557_032),
        ("inception", {}, [2048, 768], 5, 27_161_264),
        ("bit", {"size": "r50x1"}, [2048], 7, 25_549_352),  # timm's resnetv2_50x1_bit
        ("swin", {"size": "tiny"}, [768], 7, 28_288_354),
        ("convnext", {"size": "tiny"}, [768], 7, 28_589_128),
    ],
)
def test_published_sizes(name, options, widths, side, published, monkeypatch):
    """At 224 pixels: parameters with linear heads of 1000 classes (on Inception's auxiliary features too), side of the map."""
    monkeypatch.setattr(torch.Tensor, "normal_", lambda self, *args, **kwargs: self)  # initial values do not matter here
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *args, **kwargs: self)
    encoder = build(name, 224, **options)
    assert (encoder.width, encoder.resize, encoder.map_shape[1]) == (widths[0], 224, side)
    count = sum(p.numel() for p in encoder.parameters())
    assert count + sum(width * 1000 + 1000 for width in widths) == published


@pytest.mark.parametrize(
    ("name", "options", "side", "theirs", "last"),
    [
        ("resnet", {"size": 18}, 64, "resnet18", "fc"),
        ("alexnet", {"hidden": 4096}, 64, "alexnet", "classifier.6"),
        ("vgg", {"size": 11, "batch_norm": "false", "hidden": 4096}, 32, "vgg11", "classifier.6"),
        ("vgg", {"size": 11, "hidden": 4096}, 32, "vgg11_bn", "classifier.6"),
        ("inception", {}, 299, "inception_v3", "fc"),
    ],
)
def test_features_are_those_of_torchvision(name, options, side, theirs, last):
    """The same weights under the same names; the library's last linear layer makes its logits of our features."""
    encoder = stirred(build(name, side, **options))
    with torch.device("meta"):
        net = models.get_model(theirs, **({} if theirs in ("resnet18", "alexnet") else {"init_weights": False}))
    heads = {k: v.shape for k, v in net.state_dict().items() if k.startswith((f"{last}.", "AuxLogits.fc."))}
    tensors = encoder.net.state_dict()
    assert set(tensors) == set(net.state_dict()) - set(heads)
    generator = torch.Generator().manual_seed(3)
    made = {k: 0.02 * torch.randn(shape, generator=generator) for k, shape in heads.items()}
    net.load_state_dict({**tensors, **made}, assign=True)
    x = images(side, count=1)
    with torch.no_grad():
        if theirs == "inception_v3":
            features, branch = encoder.both(x)
            net.train()  # only then it gives both; with statistics and dropout as in evaluation
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
                    module.eval()
            main, auxiliary = net(x)
            head = branch @ made["AuxLogits.fc.weight"].T + made["AuxLogits.fc.bias"]
            torch.testing.assert_close(head, auxiliary, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features, encoder.features(x), rtol=1e-4, atol=1e-5)
        else:
            features, main = encoder.features(x), net.eval()(x)
        torch.testing.assert_close(features @ made[f"{last}.weight"].T + made[f"{last}.bias"], main, rtol=1e-4, atol=1e-5)
    assert main.std() > 1e-3


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_transformers_reads_the_folder(name, tmp_path):
    """`from_pretrained` misses and ignores nothing, and its pooled output is our features; gray images as three channels."""
    encoder = stirred(build(name, 28, 1))
    encoder.save(tmp_path / "encoder", [0.5], [0.25])
    theirs, info = getattr(transformers, OF_TRANSFORMERS[name]).from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert list(theirs.state_dict()) == list(encoder.net.state_dict())
    x = images(28, 1)
    with torch.no_grad():
        pooled = theirs.eval()(encoder.prepare(x)).pooler_output.flatten(1)
        torch.testing.assert_close(encoder.features(x), pooled)
    assert pooled.std(0).mean() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_save_and_load_are_exact(name, tmp_path):
    encoder = stirred(build(name, 28))
    encoder.save(tmp_path / "encoder", [0.5, 0.4, 0.3], [0.25] * 3)
    other = build(name, 28)
    assert tensor_files.sha256(other.state_dict()) != tensor_files.sha256(encoder.state_dict())
    other.load(tmp_path / "encoder")
    assert tensor_files.sha256(other.state_dict()) == tensor_files.sha256(encoder.state_dict())
    assert torch.equal(other.features(images(28)), encoder.features(images(28)))


@pytest.mark.parametrize("name", ["resnet", "inception", "bit", "swin", "convnext"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_processor_gives_the_model_its_input(name, mode, tmp_path):
    """The whole image at the model's side, standardised with the data's numbers, gray as three channels."""
    encoder = build(name, 28, 1)
    encoder.save(tmp_path / "encoder", [0.5], [0.25])
    image = Image.fromarray(np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)).convert(mode)
    found = AutoImageProcessor.from_pretrained(tmp_path / "encoder")(image, return_tensors="pt")["pixel_values"]
    small = np.array(image.convert("RGB").resize((encoder.resize, encoder.resize), Image.Resampling.BILINEAR))
    wanted = (torch.from_numpy(small).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)  # two resizers round to 8 bits differently


@pytest.mark.parametrize("name", FAMILIES)
def test_gray_images_are_three_equal_channels(name):
    gray, colour = build(name, 28, 1), build(name, 28, 3)
    colour.net.load_state_dict(gray.net.state_dict())
    x = images(28, 1)
    with torch.no_grad():
        torch.testing.assert_close(gray.features(x), colour.features(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("name", "side"),
    [(n, s) for n in FAMILIES for s in (8, 64)]
    + [(n, s) for n in FAMILIES[-2:] for s in (28, 32, 48, 96)]
    + [(n, 224) for n in ("cnn", "resnet", "bit", "swin", "convnext")],
)
def test_any_size_of_image(name, side):
    encoder, x = build(name, side), images(side)
    with torch.no_grad():
        maps, features = encoder.feature_map(x), encoder.features(x)
    assert maps.shape == (2, *encoder.map_shape, encoder.map_shape[1])
    assert features.shape == (2, encoder.width)
    assert maps.isfinite().all()
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("name", [f for f in FAMILIES if f not in ("cnn", "convnext")])
def test_resize_is_chosen_or_not_done(name):
    """`none` leaves images as they are, a number is that side, auto only grows (swin's rounds to whole windows)."""
    encoder, x = build(name, 96, resize="none"), images(96)
    assert encoder.resize == 96
    assert torch.equal(encoder.prepare(x), x)
    assert build(name, 32, resize=96, **({"patch": 2} if name == "swin" else {})).resize == 96
    assert (
        build(name, 32).resize
        == {"alexnet": 63, "vgg": 32, "resnet": 56, "inception": 75, "mobilenet": 64, "bit": 56, "swin": 32}[name]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_depths_have_no_gaps_and_follow_the_forward_pass(name):
    """Every parameter has a depth from 0 to depth + 1, none is empty, and depth never falls from a layer to the next."""
    encoder = build(name, 28)
    depths = {n: encoder.depth_of(n) for n, _ in encoder.named_parameters()}
    own = {n: encoder.depth_of(f"encoder.{n}") for n, _ in encoder.named_parameters()}
    assert own == depths
    assert set(range(encoder.depth + 1)) <= set(depths.values()) <= set(range(encoder.depth + 2))
    order, handles = [], []
    for module_name, module in encoder.named_modules():
        for parameter_name, _ in module.named_parameters(recurse=False):
            depth = depths[f"{module_name}.{parameter_name}"]
            handles.append(module.register_forward_hook(lambda *_, depth=depth: order.append(depth)))
    with torch.no_grad():
        encoder.features(images(28))
    assert order == sorted(order)
    assert order[0] == 0
    assert order[-1] >= encoder.depth
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [  # sides of the map that Grad-CAM shows of images of 28 and of 224 pixels, where the last map is fine enough
        ("cnn", 7, 7),
        ("alexnet", 3, 13),
        ("vgg", 4, 14),
        ("resnet", 4, 7),
        ("inception", 3, 5),
        ("mobilenet", 4, 7),
        ("bit", 4, 7),
        ("convnext", 3, 7),
    ],
)
def test_grad_cam_tells_places_apart(name, small, large):
    pytest.importorskip("captum")
    for size, side in ((28, small), (224, large)):
        model = Classifier(build(name, size), 3, 0.0)
        maps = attribution.grad_cam(model, images(size), torch.tensor([0, 2]))
        assert maps.shape == (2, side, side)
