"""What the figures show: Grad-CAM and the map of the features."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, HandMade, latest
from torch import nn

from ptmrun.downstream.classification import Classifier
from ptmrun.errors import UserError
from ptmrun.models import vit
from ptmrun.reports import attribution, figures, phrases, projection


class Convolutions(HandMade):
    """A small encoder with a layer that Grad-CAM can look at."""

    width = 6

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)

    @property
    def cam_layers(self) -> list[nn.Module]:
        return [self.first, self.second]

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.second(self.first(images).relu())).mean((2, 3))


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_by_hand(frozen):
    """Against the paper's equations 1 and 2 by autograd; with frozen weights too, as finetune=linear leaves them."""
    pytest.importorskip("captum")
    torch.manual_seed(0)
    model = Classifier(Convolutions(), 4, 0.0)
    nn.init.normal_(model.head.weight)
    images, classes = torch.randn(3, 1, 8, 8), torch.tensor([0, 3, 1])
    encoder = model.encoder
    maps = encoder.second(encoder.first(images).relu())
    logits = model.head(maps.relu().mean((2, 3)))
    slopes = torch.autograd.grad(logits[torch.arange(3), classes].sum(), maps)[0]
    alpha = slopes.mean((2, 3), keepdim=True)
    expected = (alpha * maps).sum(1).relu().detach()
    encoder.requires_grad_(not frozen)
    found = attribution.grad_cam(model, images, classes)
    assert found.shape == (3, 4, 4)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)
    assert ((expected > 0).float().mean((1, 2)) > 0).any()
    assert not torch.allclose(found, attribution.grad_cam(model, images, classes.flip(0)))


def test_a_run_draws_grad_cam_or_says_what_is_missing(ptmrun, monkeypatch):
    pytest.importorskip("captum")
    projection = property(lambda self: [self.vit.embeddings.patch_embeddings.projection])
    monkeypatch.setattr(vit.Encoder, "cam_layers", projection, raising=False)
    quick = [*TINY, "evaluate.baselines=[chance]", "pretrain.steps=4", "finetune.seeds=1"]
    code, out, _ = ptmrun(*quick)
    assert (code, "No picture of attributions" in out) == (0, False)
    folder = latest()
    assert 'id="grad_cam"' in (folder / "report.html").read_text()
    assert (folder / "figures" / "grad_cam.png").exists()
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    code, out, _ = ptmrun("stage=evaluate", f"init={folder}", "device=cpu", "device.precision=fp32", "device.threads=1")
    assert code == 0
    assert out.count("No picture of attributions: it needs captum; install it with: pip install 'ptmrun[attribution]'") == 1
    assert not (latest() / "figures" / "grad_cam.png").exists()


def test_principal_components():
    """Against the eigenvectors of the covariance: the same coordinates up to their sign, and the same shares."""
    x = np.random.default_rng(0).normal(size=(40, 5)) @ np.diag([5.0, 3.0, 1.0, 1.0, 1.0]) + 7
    points, titles = projection.plane(x, "pca", 0)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-8)
    share = values[-1] / values.sum()
    assert titles[0] == f"component 1 ({share:.0%} of variance)"
    np.testing.assert_array_equal(points, projection.plane(x, "pca", 1)[0])


@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_is_seeded_and_keeps_neighbours():
    pytest.importorskip("umap")
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(20, 8)) + 10 * c * np.eye(8)[c] for c in (1, 2)])
    points, titles = projection.plane(x, "umap", 3)
    assert titles == ["UMAP 1", "UMAP 2"]
    near, far = (np.linalg.norm(points[:20] - points[place].mean(0), axis=1).mean() for place in (slice(20), slice(20, 40)))
    assert 2 * near < far
    np.testing.assert_array_equal(points, projection.plane(x, "umap", 3)[0])
    assert not np.array_equal(points, projection.plane(x, "umap", 4)[0])


def test_umap_that_is_not_installed_is_said_before_the_run(ptmrun, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "umap" else find(name, *more))
    with pytest.raises(UserError, match="needs umap-learn"):
        projection.plane(np.zeros((4, 3)), "umap", 0)
    code, _, err = ptmrun(*TINY, "evaluate.map=umap")
    assert (code, err.count("\n")) == (2, 1)
    assert "evaluate.map=umap: needs umap-learn; install it with: pip install 'ptmrun[umap]', or choose pca" in err
    assert not latest().exists()


@pytest.mark.parametrize("count", [3, 15, 40])
def test_the_map_has_a_colour_a_class(count, monkeypatch):
    """And a legend for up to 20 classes, with names that would be formulas or hidden elsewhere."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda run, name, figure: drawn.append((name, figure)))
    labels, names = np.arange(count).repeat(3), [f"_$class {i}^$" for i in range(count)]
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    figures.embedding(None, {"untrained": (points, ["x", "y"]), "pretrained": (points, ["x", "y"])}, labels, names)
    [(name, figure)] = drawn
    assert name == "embedding"
    for axis in figure.axes:
        [dots] = axis.collections
        np.testing.assert_array_equal(dots.get_offsets(), points)
        colors = dots.get_facecolors()
        assert len(np.unique(colors, axis=0)) == count
        assert all(len(np.unique(colors[labels == c], axis=0)) == 1 for c in range(count))
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts == (names if count <= 20 else [])
    figures.png(figure)


def test_what_trains_nothing_is_not_called_tuned():
    assert phrases.titles(pretrained=True, trains=False)["tuned"] == "pretrained, as it is"


@pytest.mark.parametrize("weights", ["0" * 64, None])
def test_what_was_never_pretrained_is_not_called_so(weights, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda run, name, figure: drawn.append(figure))
    scores = {"chance": {"mean": 0.1, "sd": None}, "tuned": {"mean": 0.8, "sd": 0.1}}
    figures.scores(None, {"all labels": scores}, "accuracy", phrases.titles(weights is not None, trains=True))
    names = [label.get_text() for label in drawn[0].axes[0].get_yticklabels()]
    words = phrases.methods({"weights_sha256": weights, "by_labels": [{"curve": []}]})["tuned"]
    assert (names, words) == (
        (["pretrained, tuned", "chance"], "pretrained, then fine-tuned")
        if weights
        else (["trained", "chance"], "trained on the labels from random weights")
    )
