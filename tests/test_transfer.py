"""Weights from outside and from runs on other data."""

import json
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from conftest import TINY, draw, latest
from transformers import BitConfig, BitForImageClassification

from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.config.init_source import origin
from ptmrun.data.images import load as images
from ptmrun.errors import UserError
from ptmrun.models import bit, cnn, convnext, library_format, mobilenet, pretrained, resnet, swin, vit
from ptmrun.models.base import IMAGENET
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.storage import tensor_files

FAST = [*TINY[6:], "dataset=digits", "dataset.limit=100", "finetune.seeds=1", "evaluate.baselines=[chance]"]


class Trap:
    """A pickle of it makes a file when it is opened as pickles are."""

    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def resnet18(side: int = 64) -> resnet.Encoder:
    return resnet.build(SimpleNamespace(size=18, resize=side), ImageSpec(side, 3), "eager").eval()


def test_a_state_dict_of_torchvision_gives_its_features():
    theirs = torchvision.models.resnet18().eval()
    torch.save(theirs.state_dict(), "r.pth")
    encoder = resnet18()
    source, tensors, config = pretrained.read("r.pth")
    notes = pretrained.load(encoder, tensors, config, source)
    assert notes[0] == "init=r.pth: 120 tensors loaded, 100.0% of the encoder's 11,176,512 parameters"
    assert notes[1:] == ["  left out, as the classifier's: fc.weight, fc.bias"]
    images = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(images), theirs(images))


def test_a_folder_of_transformers_gives_its_features_and_its_config_is_compared():
    depths, widths, stem = bit.SIZES["micro"]
    config = BitConfig(depths=depths, hidden_sizes=widths, embedding_size=stem, global_padding="SAME")
    theirs = BitForImageClassification(config).eval()
    with library_format.quiet():
        theirs.save_pretrained("folder")
    encoder = bit.build(SimpleNamespace(size="micro", resize=64), ImageSpec(64, 3), "eager").eval()
    source, tensors, said = pretrained.read("folder")
    notes = pretrained.load(encoder, tensors, said, source)
    assert "100.0%" in notes[0]
    assert notes[1] == "  left out, as the classifier's: classifier.1.bias, classifier.1.weight"
    assert notes[2].endswith("global_padding is SAME there and None here")
    mine, his = encoder.net.state_dict(), theirs.bit.state_dict()
    assert tensor_files.sha256(mine) == tensor_files.sha256(his)


def test_patch_embeddings_give_the_same_for_scaled_patches():
    """Scaled up, exactly; scaled down, as nearly as least squares over random patches come."""
    weight = torch.randn(5, 3, 4, 4)
    coarse = torch.randn(2, 3, 4, 4)
    expected = torch.nn.functional.conv2d(coarse, weight, stride=4)
    fine = torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(
        torch.nn.functional.conv2d(fine, vit.rescaled(weight, 8), stride=8), expected, atol=1e-5, rtol=1e-4
    )
    patches = torch.randn(100_000, 1, 4, 4)
    small = torch.nn.functional.interpolate(patches, (2, 2), mode="bilinear", antialias=True)
    nearest = torch.linalg.lstsq(small.flatten(1), patches.flatten(1) @ weight[:, 0].flatten(1).T).solution.T
    torch.testing.assert_close(vit.rescaled(weight, 2)[:, 0].flatten(1), nearest, atol=0.15, rtol=0)
    made = {"size": "micro", "pool": "mean", "dropout": 0.0}
    theirs = vit.build(SimpleNamespace(patch=16, **made), ImageSpec(64, 3), "eager")
    mine = vit.build(SimpleNamespace(patch=8, **made), ImageSpec(32, 1), "eager")
    notes = pretrained.load(mine, theirs.net.state_dict(), {}, "x")
    assert "100.0% of the encoder's" in notes[0]
    assert notes[1:] == [
        "  patch embeddings: from colour to gray, the sum of the channels",
        "  patch embeddings: from 16x16 to 8x8 pixels, pseudo-inverse",
    ]


@pytest.mark.parametrize(
    ("family", "patch", "options"),
    [
        (vit, {"patch": 8}, {"pool": "mean", "dropout": 0.0}),
        (swin, {"patch": 2}, {"resize": 32, "drop_path": 0.0}),
        (convnext, {"patch": 2}, {"drop_path": 0.0}),
        (bit, {}, {"resize": 56}),
    ],
)
def test_a_folder_says_of_which_size_its_weights_are(family, patch, options):
    encoder = family.build(SimpleNamespace(size="micro", **patch, **options), ImageSpec(32, 3), "eager")
    library_format.save(encoder.net, Path("encoder").absolute(), {}, None)
    theirs = pretrained.library_config(Path("encoder/config.json"))
    auto = SimpleNamespace(size="auto", **dict.fromkeys(patch, "auto"))
    assert pretrained.described(auto, family.FAMILY, theirs) == {"size": "micro", **patch}
    typed = SimpleNamespace(size="tiny", **dict.fromkeys(patch, 4))
    assert pretrained.described(typed, family.FAMILY, theirs) == {}
    assert pretrained.described(auto, family.FAMILY, {**theirs, family.SHAPE[0]: 7}) == patch


def test_the_folder_that_a_run_leaves_can_be_started_from(ptmrun):
    code, _, err = ptmrun("stage=pretrain", "pretrain.steps=2", *FAST)
    assert code == 0, err
    code, said, err = ptmrun("stage=finetune+evaluate", f"init={latest()}/checkpoints/encoder", *FAST)
    assert code == 0, err
    assert "100.0% of the encoder's" in said
    assert "model.size=micro: as published" in said


@pytest.mark.parametrize(
    ("family", "name", "options"),
    [
        (vit, "vit_tiny_patch16_224", {"size": "tiny", "patch": 16, "pool": "cls", "dropout": 0.0}),
        (swin, "swin_tiny_patch4_window7_224", {"size": "tiny", "patch": 4, "resize": 224, "drop_path": 0.0}),
        (convnext, "convnext_tiny", {"size": "tiny", "patch": 4, "drop_path": 0.0}),
        (bit, "resnetv2_50x1_bit", {"size": "r50x1", "resize": 224}),
        (resnet, "resnet18", {"size": 18, "resize": 224}),
    ],
)
def test_weights_of_timm_give_its_features(family, name, options):
    theirs = timm.create_model(name).eval()
    for key, value in theirs.state_dict().items():  # no norm or scale as it begins, so that mistakes show
        if value.ndim == 1 and value.is_floating_point():
            torch.nn.init.uniform_(value, 0.3, 0.6)
            assert "running" not in key or value.min() > 0
    encoder = family.build(SimpleNamespace(**options), ImageSpec(224, 3), "eager").eval()
    notes = pretrained.load(encoder, theirs.state_dict(), {}, "x")
    assert "100.0% of the encoder's" in notes[0]
    assert [line.split(":")[0] for line in notes[1:]] == ["  left out, as the classifier's"]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder.features(images), expected, atol=1e-4, rtol=1e-4)


def test_images_are_normalised_as_the_weights_were_trained(tmp_path):
    assert pretrained.normalisation("pretrained", resnet.FAMILY) == list(IMAGENET)
    assert pretrained.normalisation("pretrained", vit.FAMILY) == [0.5] * 6
    torch.save({}, "r.pth")
    assert pretrained.normalisation("r.pth", resnet.FAMILY) == list(IMAGENET)
    for name, about in (
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
        ("config.json", {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}),
    ):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / name).write_text(json.dumps(about))
        assert pretrained.normalisation(str(folder), resnet.FAMILY) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    mean, std = images.given([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1)
    torch.testing.assert_close(torch.cat([mean, std]), torch.tensor([0.2, 0.5]))
    assert images.given([0.1, 0.4], 1)[1].tolist() == [pytest.approx(0.4)]
    for wrong in ([0.1, 0.2, 0.3], [0.1, 0.4], [0.1, 0.2, 0.3, 0.4, 0.5, 0.0]):
        with pytest.raises(UserError, match=r"dataset\.normalise=.*: expected 6 numbers"):
            images.given(wrong, 3)


def test_weights_of_an_older_torchvision_give_its_features():
    """MobileNetV2 before its blocks were nested: convolution, norm and ReLU of a block were numbered through."""
    theirs = torchvision.models.mobilenet_v2().eval()
    before = {}
    for i, block in enumerate(theirs.features):
        nested = [part if isinstance(part, torch.nn.Sequential) else [part] for part in getattr(block, "conv", [])]
        layers = {f"conv.{j}": layer for j, layer in enumerate(chain(*nested))} or dict(block.named_children())
        before |= {f"features.{i}.{name}.{k}": v for name, x in layers.items() for k, v in x.state_dict().items()}
    encoder = mobilenet.build(SimpleNamespace(resize=64), ImageSpec(64, 3), "eager").eval()
    assert "100.0% of the encoder's" in pretrained.load(encoder, before, {}, "x")[0]
    again = mobilenet.build(SimpleNamespace(resize=64), ImageSpec(64, 3), "eager").eval()
    pretrained.load(again, theirs.state_dict(), {}, "x")
    assert tensor_files.sha256(encoder.net.state_dict()) == tensor_files.sha256(again.net.state_dict())


def test_what_does_not_fit_is_named():
    tensors = dict(torchvision.models.resnet18().state_dict())
    tensors["bn1.weight"], tensors["other"] = torch.ones(3), torch.ones(1)
    del tensors["layer1.0.bn1.bias"]
    first = resnet18()
    before = first.net.bn1.weight.clone()
    notes = pretrained.load(first, tensors, {}, "x")
    assert "  missing: layer1.0.bn1.bias" in notes
    assert "  unexpected: other" in notes
    assert "  of another shape: bn1.weight" in notes
    assert torch.equal(first.net.bn1.weight, before)
    few = {k: v for k, v in tensors.items() if not k.startswith("layer4")}
    with pytest.raises(UserError, match=r"24\.\d% of the encoder's 11,176,512 parameters, expected at least 90%"):
        pretrained.load(first, few, {}, "x")
    tensors["conv1.weight"] = torch.full((64, 3, 7, 7), float("nan"))
    with pytest.raises(UserError, match=r"conv1\.weight holds NaN"):
        pretrained.load(first, tensors, {}, "x")


def test_a_pickle_of_more_than_tensors_is_refused():
    torch.save({"conv1.weight": Trap()}, "trap.pth")
    with pytest.raises(UserError, match="refused, and nothing in it was run"):
        pretrained.read("trap.pth")
    assert not Path("sprung").exists()
    torch.save({"a": 1}, "numbers.pt")
    Path("broken.pth").write_bytes(b"x")
    for name in ("numbers.pt", "broken.pth"):
        with pytest.raises(UserError, match="not a plain state dict"):
            pretrained.read(name)
    with pytest.raises(UserError, match=r"init=none\.pth: no such file"):
        pretrained.read("none.pth")


@pytest.mark.parametrize(
    ("wrap", "below"),
    [
        (lambda t: {"state_dict": t, "epoch": 7}, "state_dict."),
        (lambda t: {"model": t, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}}, "model."),
        (lambda t: {"ckpt": {"model_state_dict": t}, "model_ema": {}}, "ckpt.model_state_dict."),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "module."),
        (lambda t: {"state_dict": {f"backbone.{k}": v for k, v in t.items()}}, "state_dict.backbone."),
        (lambda t: {f"{who}.net.{k}": v for who in ("student", "teacher") for k, v in t.items()}, "student.net."),
        (lambda t: t | {"epoch": 3}, ""),
    ],
)
def test_weights_are_found_inside_of_checkpoints(wrap, below):
    theirs = torchvision.models.resnet18(num_classes=3).state_dict()
    torch.save(wrap(dict(theirs)), "epoch=3.CKPT")
    encoder = resnet18()
    notes = pretrained.load(encoder, pretrained.read("epoch=3.CKPT")[1], {}, "x")
    assert notes[0] == "init=x: 120 tensors loaded, 100.0% of the encoder's 11,176,512 parameters"
    assert [line for line in notes if "tensors below" in line][:1] == [
        f"  taken are the tensors below {below}{'; 122 others are left out' if 'student' in below else ''}"
    ] * bool(below)
    assert torch.equal(encoder.net.layer1[0].conv1.weight, theirs["layer1.0.conv1.weight"])


@pytest.mark.parametrize("name", ["w.ckpt", "w.bin", "w.pth.tar", "W.PTH", "weights", "w.safetensors", "s.bin"])
def test_files_of_weights_may_be_called_as_they_are(name):
    assert origin(name) == ("run" if name == "weights" else "file")
    tensors = {"a": torch.ones(2)}
    if name.startswith("s") or name.endswith("safetensors"):
        tensor_files.save(Path(name), tensors)
    else:
        torch.save(tensors, name)
    assert origin(name) == "file"
    assert torch.equal(pretrained.read(name)[1]["a"], tensors["a"])


def test_hub_ids(monkeypatch, tmp_path):
    given = []

    blob = tmp_path / "0123abcd"  # the hub's cache links to files that are named by their hash

    def fetched(name, allow_patterns):
        given.append((name, {p for p in allow_patterns if p.endswith((".py", ".bin", ".safetensors"))}))
        (tmp_path / "config.json").write_text('{"size": 1}')
        if name == "owner/name-v1.0":
            tensor_files.save(blob, {"a": torch.ones(1)})
            (tmp_path / "model.safetensors").symlink_to(blob)
        elif "pytorch_model.bin" in allow_patterns:
            torch.save({"b": torch.ones(1)}, blob)
            (tmp_path / "pytorch_model.bin").symlink_to(blob)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert origin("owner/name-v1.0") == "hub"
    for _ in range(2):  # the hub is asked once
        assert pretrained.place("owner/name-v1.0") == tmp_path
    assert given == [("owner/name-v1.0", {"model.safetensors"})]
    assert pretrained.read("owner/name-v1.0") == ("owner/name-v1.0", {"a": torch.ones(1)}, {"size": 1})
    (tmp_path / "model.safetensors").unlink()
    assert list(pretrained.read("owner/older")[1]) == ["b"]
    assert given[1:] == [("owner/older", {"model.safetensors"}), ("owner/older", {"pytorch_model.bin"})]
    Path("owner").mkdir()
    assert origin("owner/name-v1.0") == "run", "a folder of that name is here"

    def unreachable(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"a/b: no such run or file here, and it cannot be fetched from the hub \(no route\)"):
        pretrained.place("a/b")


def test_published_weights(monkeypatch):
    encoder = resnet18()
    for name in resnet.PUBLISHED.values():
        torchvision.models.get_weight(name)  # they exist
    given = {}

    def get_state_dict(self, **options):
        given.update(options)
        return {"fc.bias": torch.ones(2)}

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)
    source, tensors, _ = pretrained.published(encoder.net, encoder.kind, resnet.PUBLISHED)
    assert source == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert given == {"progress": False, "check_hash": True, "weights_only": True}
    assert list(tensors) == ["fc.bias"]

    def unreachable(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", unreachable)
    with pytest.raises(UserError, match=r"ResNet18_Weights.IMAGENET1K_V1 cannot be fetched \(no route\); a local file"):
        pretrained.published(encoder.net, encoder.kind, resnet.PUBLISHED)
    net = cnn.build(SimpleNamespace(width=4, hidden=8), ImageSpec(8, 1), "eager")
    with pytest.raises(UserError, match="no published weights of cnn"):
        pretrained.published(net.net, net.kind, getattr(cnn, "PUBLISHED", {}))


def test_a_run_from_a_file(ptmrun):
    theirs = resnet.build(SimpleNamespace(size=10, resize=56), ImageSpec(8, 1), "eager").net
    torch.save(theirs.state_dict(), "r.pth")
    argv = [*FAST, "model=resnet", "model.size=10", "stage=finetune", "init=r.pth", "finetune=linear"]
    code, out, err = ptmrun(*argv)
    assert code == 0, err
    assert "100.0% of the encoder's" in out
    assert "dataset.normalise=[0.485, 0.456, 0.406, 0.229, 0.224, 0.225]: as published" in out
    run = Run.open(latest())
    start = tensor_files.load(run.path("checkpoints/start.safetensors"))[0]
    assert tensor_files.sha256(tensor_files.part(start, "net.")) == tensor_files.sha256(theirs.state_dict())
    assert run.manifest["parents"] == [{"run": "r.pth", "weights_sha256": tensor_files.sha256(start), "data": None}]
    code, out, err = ptmrun("reproduce", run.folder)
    assert code == 0, err
    assert "bit-exact" in out
    torch.save({k: v + 1 for k, v in theirs.state_dict().items()}, "r.pth")
    code, _, err = ptmrun("reproduce", run.folder)
    assert code == 2
    assert "init=r.pth: its weights are not those that the run began with; refused" in err
    Path("r.pth").unlink()
    code, _, err = ptmrun("stage=evaluate", f"init={run.folder}", "evaluate.baselines=[frozen]", *TINY[-4:])
    assert code == 0, err
    assert json.loads((latest() / "manifest.json").read_text())["parents"][0]["weights_sha256"] == tensor_files.sha256(start)
    code, _, err = ptmrun("stage=evaluate", "init=r.pth")
    assert "stage=evaluate: needs init=<run folder>" in err


def small_vit(side: int, channels: int) -> vit.Encoder:
    options = SimpleNamespace(size="micro", patch=4, pool="mean", dropout=0.0)
    return vit.build(options, ImageSpec(side, channels), "eager").eval()


@torch.no_grad()
def test_a_vit_for_other_images():
    gray, colour, larger = small_vit(16, 1), small_vit(16, 3), small_vit(28, 3)
    gray.save(Path("gray"), [0.5], [0.25])
    images = torch.randn(3, 1, 16, 16)
    colour.load(Path("gray"))
    assert torch.equal(colour.positions, gray.positions)
    torch.testing.assert_close(colour.features(images.expand(-1, 3, -1, -1)), gray.features(images))
    again = small_vit(16, 1)
    tensors, notes = gray.adjusted(gray.state_dict())
    assert (tensor_files.sha256(tensors), notes) == (tensor_files.sha256(gray.state_dict()), [])
    colour.save(Path("colour"), [0.5] * 3, [0.25] * 3)
    again.load(Path("colour"))
    torch.testing.assert_close(again.features(images), gray.features(images))

    larger.load(Path("colour"))  # transformers' own interpolation is the reference
    photos = torch.randn(2, 3, 28, 28)
    expected = colour.vit(photos, interpolate_pos_encoding=True).last_hidden_state[:, 1:].mean(1)
    torch.testing.assert_close(larger.features(photos), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(larger.vit.embeddings.position_embeddings[:, 0], colour.vit.embeddings.position_embeddings[:, 0])
    notes = larger.adjusted(library_format.tensors_of(Path("gray")))[1]
    assert notes == [
        "patch embeddings: from gray to colour, a third for each channel",
        "position embeddings: from 4x4 to 7x7 patches, bicubic",
    ]


@torch.no_grad()
def test_a_convolutional_net_sees_gray_as_colour():
    gray, colour = (
        resnet.build(SimpleNamespace(size=10, resize=56), ImageSpec(side, c), "eager").eval() for side, c in ((8, 1), (40, 3))
    )
    gray.save(Path("gray"), [0.5], [0.25])
    colour.load(Path("gray"))
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(colour.features(images.expand(-1, 3, -1, -1)), gray.features(images))


@pytest.fixture
def photos():
    for name, shade in (("cat", 0), ("dog", 3)):
        for i in range(20):
            draw(Path(f"photos/{name}/{i}.png"), "RGB", (30 + i, 29), shade + i % 2)
    return [*TINY[10:12], *TINY[-4:], "stage=finetune", "dataset=imagefolder", "dataset.root=photos", "finetune.seeds=1"]


def test_a_run_on_other_data(done_run, photos, ptmrun):
    code, out, err = ptmrun(*photos, f"init={done_run}", "finetune=linear")
    assert code == 0, err
    assert "position embeddings: from 4x4 to 16x16 patches, bicubic" in out
    assert "patch embeddings: from gray to colour" in out
    assert "32x32 colour, 2 classes" in out
    child = latest()
    assert config_file.load(child / "config.yaml").dataset.image_size == 32
    code, _, err = ptmrun("stage=evaluate", f"init={done_run}", *photos[2:6], *photos[7:9], "evaluate.baselines=[chance]")
    assert code == 2
    assert "was trained to tell 0, 1, 2, 3, 4, ... apart; the data has the class" in err
    code, _, err = ptmrun("stage=evaluate", f"init={child}", *TINY[-4:], "evaluate.baselines=[chance]")
    assert code == 0, err


def test_a_convolutional_run_on_other_data(photos, ptmrun):
    first = [*TINY, "pretrain.steps=1", "pretrain.probes=0", "stage=pretrain", "task=supervised"]
    assert ptmrun(*first, "model=cnn", "name=cnn")[0] == 0
    code, _, err = ptmrun(*photos, f"init={latest()}")
    assert code == 2
    assert "its encoder does not fit images of 32" in err
    assert "dataset.image_size=8 gives images the side that it was made for" in err
    assert ptmrun(*first, "model=resnet", "name=resnet")[0] == 0
    code, out, err = ptmrun(*photos, f"init={latest()}", "model.resize=28")
    assert code == 0, err
    assert "images are scaled down from 32 pixels a side to the model's 28" in out


def test_what_a_data_set_brings_goes_with_it(done_run):
    inherited = compose([f"init={done_run}", "dataset=imagefolder"])
    assert config_file.load(done_run / "config.yaml").pretrain.augment == 0.5  # of dataset=digits
    assert inherited.pretrain.augment == 1.0
    assert inherited.dataset.image_size == "auto"
    assert inherited.dataset.limit is None
    assert inherited.downstream.labels_per_class == 5  # typed, and no data set's
    assert inherited.pretrain.lr == 4e-3
    assert compose([f"init={done_run}", "dataset=digits"]).downstream.labels_per_class == 5
    # an experiment, too, wins over what the run had
    assert compose([f"init={done_run}", "experiment=methods_table"]).evaluate.baselines == ["raw", "frozen"]
    assert compose([f"init={done_run}", "experiment=methods_table", "evaluate.baselines=[raw]"]).evaluate.baselines == ["raw"]


@pytest.mark.parametrize(("side", "patch", "wanted"), [(48, 2, 48), (50, 7, 49), (10, 16, 32), (48, "auto", 48)])
def test_images_fit_a_given_patch(side, patch, wanted):
    assert vit.fitting(SimpleNamespace(patch=patch), side) == wanted
