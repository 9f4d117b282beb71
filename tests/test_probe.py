"""How spread features are, against the formulas, and the alarm for features that collapse."""

import contextlib
import math

import numpy as np
import pytest
import torch
from conftest import HandMade
from test_train import data
from test_vision_models import build

from ptmrun.data.images.processor import ImageProcessor
from ptmrun.downstream import classical
from ptmrun.stages import probe

NORMALISE = ImageProcessor(torch.tensor([0.5]), torch.tensor([0.3]), torch.device("cpu"))


def spread(values, seed=0):
    """Centred features [64, D] with these singular values."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(np.column_stack([np.ones(64), generator.normal(size=(64, len(values)))]))[0][:, 1:]
    right = np.linalg.qr(generator.normal(size=(len(values), len(values))))[0]
    return left @ np.diag(values) @ right


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([5.0, 0, 0, 0], 1.0),
        ([2.0, 2.0, 2.0, 0], 3.0),
        ([1.0] * 8, 8.0),
        ([3.0, 1.0], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_effective_rank_against_the_formula(values, rank):
    """exp(-sum p log p) with p the singular values' shares, wherever the features' mean is."""
    x = spread(values)
    assert probe.effective_rank(x) == pytest.approx(rank, rel=1e-6)
    assert probe.effective_rank(7 * x + 3) == pytest.approx(rank, rel=1e-6)
    assert probe.effective_rank(np.ones((5, 4))) == 1.0


def test_feature_std_against_the_formula():
    x = np.random.default_rng(0).normal(size=(50, 6)) + 1
    columns = np.array([row / math.sqrt(sum(v * v for v in row)) for row in x]).T
    by_hand = [math.sqrt(sum((v - sum(c) / 50) ** 2 for v in c) / 50) for c in columns]
    assert probe.feature_std(x) == pytest.approx(math.sqrt(6) * sum(by_hand) / 6, rel=1e-9)
    assert probe.feature_std(np.random.default_rng(1).normal(size=(5000, 64))) == pytest.approx(1, abs=0.02)
    assert probe.feature_std(np.tile([1.0, -2.0, 3.0], (9, 1))) == pytest.approx(0, abs=1e-12)
    assert probe.feature_std(np.zeros((9, 3))) == 0


class Collapsed(HandMade):
    """Features that are the same for all images, but for a trace of the true ones."""

    def __init__(self, encoder, trace, axis=False):
        super().__init__()
        self.encoder, self.trace, self.axis = encoder, trace, axis

    def features(self, images):
        found = self.encoder.features(images)
        if self.axis:  # different, but all on one line
            return found.mean(1, keepdim=True) * torch.linspace(1, 2, found.shape[1]) + torch.linspace(2, 1, found.shape[1])
        return 1 + self.trace * found


def look(encoder):
    return probe.probe(encoder, data(120), data(60), NORMALISE, contextlib.nullcontext)


@pytest.mark.parametrize("name", ["cnn", "convnext", "swin"])
def test_a_constant_encoder_raises_the_alarm_and_an_untrained_one_does_not(name):
    encoder = build(name, 16, 1)
    before = look(encoder)
    assert probe.collapse(before, before, 60) is None
    for trace in (0.0, 1e-6, 1e-3):
        assert "standard deviation" in probe.collapse(look(Collapsed(encoder, trace)), before, 60)
    assert "effective rank 1.0" in probe.collapse(look(Collapsed(encoder, 0.0)), before, 60)
    assert "effective rank 1." in probe.collapse(look(Collapsed(encoder, 0, axis=True)), before, 60)


def test_features_that_know_less_than_untrained_ones_raise_the_alarm():
    """By more than two standard errors (at most) of an accuracy over 100 images."""
    before = {"effective_rank": 8.0, "feature_std": 0.5, "probe_knn": 0.6}
    assert "k-NN 0.440" in probe.collapse(before | {"probe_knn": 0.44}, before, 100)
    assert probe.collapse(before | {"probe_knn": 0.47}, before, 100) is None
    assert probe.collapse({"effective_rank": 2.1, "feature_std": 0.13}, before, 100) is None
    assert "effective rank 1.9" in probe.collapse({"effective_rank": 1.9, "feature_std": 0.5}, before, 100)
    assert "deviation of the features 0.120" in probe.collapse({"effective_rank": 8.0, "feature_std": 0.12}, before, 100)


def test_features_leave_every_module_as_it_was():
    encoder = build("resnet", 16, channels=1).train()
    encoder.net.layer1.eval()
    before = [module.training for module in encoder.modules()]
    assert set(before) == {True, False}
    for dropout in (False, True):
        a, b = (probe.features(encoder, data(40), NORMALISE, contextlib.nullcontext, dropout=dropout) for _ in range(2))
        assert np.array_equal(a, b), "nothing in it is random, and its statistics stay"
        assert [module.training for module in encoder.modules()] == before


def test_log_probabilities_of_a_sure_answer_are_finite():
    """One label per class and a sample far away: probabilities of exactly 0."""
    found = classical.logistic(np.array([[-1.0], [1.0]]), np.array([0, 1]), np.array([[1e6], [-1e6]]), c=10.0)
    assert np.isfinite(found).all()
    assert found.argmax(1).tolist() == [1, 0]


def test_the_penalty_is_chosen_by_cross_validation():
    """A hundred columns of noise beside a weak signal want a strong one, a clear signal a weak one."""
    random = np.random.default_rng(0)
    labels = np.arange(120) % 2
    weak = random.normal(size=(120, 100))
    weak[:, 0] += labels
    clear = random.normal(size=(120, 3))
    clear[:, 0] = 2 * labels - 1 + 0.3 * clear[:, 0]
    assert classical.strength(weak, labels) <= 0.03
    assert classical.strength(clear, labels) == max(classical.STRENGTHS)
    assert classical.strength(np.concatenate([weak, weak]), labels) <= 0.03  # seen twice, and held out twice
    assert classical.strength(weak[:2], labels[:2]) == classical.USUAL
    assert classical.strength(np.full((120, 3), np.nan), labels) in classical.STRENGTHS
    rare = np.where(np.arange(120) == 60, 2, labels)  # a class of one sample has no part in it
    assert classical.strength(clear, rare) == max(classical.STRENGTHS)
