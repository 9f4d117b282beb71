"""Batch normalisation's statistics, taken anew."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, HandMade, latest
from torch import nn

from ptmrun.batch import ImageSpec
from ptmrun.downstream.classification import Classifier
from ptmrun.models import batchnorm, resnet
from ptmrun.storage import tensor_files


class Encoder(HandMade):
    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.unused, self.still = nn.BatchNorm1d(3), nn.Dropout(0.9), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.still.requires_grad_(False)

    def features(self, x):
        return self.still(self.norm(self.drop(x)))


def test_statistics_are_those_of_the_inputs():
    torch.manual_seed(0)
    encoder = Encoder().train()
    encoder.unused.eval()
    encoder.norm(100 + torch.randn(20, 3))  # what it saw before does not count
    unused = {k: v.clone() for k, v in encoder.unused.state_dict().items()}
    x = 5 + 2 * torch.randn(64, 3)
    batchnorm.recompute_statistics(encoder, iter([x[:32], x[32:], x[:1]]))  # a single one has no variance
    torch.testing.assert_close(encoder.norm.running_mean, x.mean(0))
    torch.testing.assert_close(encoder.norm.running_var, (x[:32].var(0) + x[32:].var(0)) / 2)
    assert encoder.training
    assert encoder.drop.training
    assert not encoder.unused.training, "each module is as it was"
    assert encoder.norm.momentum == 0.1
    assert all(torch.equal(v, unused[k]) for k, v in encoder.unused.state_dict().items())
    assert encoder.still.running_mean.tolist() == [0, 0, 0]  # frozen
    encoder.norm(x)
    assert encoder.norm.num_batches_tracked == 3  # and goes on from there


def test_nothing_is_computed_without_such_layers():
    def never():
        pytest.fail("was asked for inputs")
        yield

    batchnorm.recompute_statistics(nn.Linear(2, 2), never())


def test_kept_statistics_stay_in_training():
    model = Classifier(resnet.build(SimpleNamespace(size=10, resize=32), ImageSpec(32, 3), "eager"), 3, 0.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batchnorm.freeze_statistics(model.encoder)
    model.train()
    images = torch.randn(4, 3, 32, 32)
    loss, _ = model({"inputs": images, "labels": torch.tensor([0, 1, 2, 0])})
    loss.total.backward()
    batchnorm.recompute_statistics(model.encoder, iter([images]))
    assert model.encoder.net.bn1.weight.grad.abs().sum() > 0  # scale and shift are trained all the same
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "running" in k)


@pytest.mark.parametrize(("given", "still"), [([], True), (["finetune.statistics=batch"], False)])
def test_weights_from_outside_keep_theirs(ptmrun, given, still):
    torch.manual_seed(0)
    theirs = resnet.build(SimpleNamespace(size=10, resize=32), ImageSpec(32, 3), "eager").net
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    torch.save(theirs.state_dict(), "theirs.pth")
    argv = ["model=resnet", "model.size=10", "init=theirs.pth", "stage=finetune", "finetune=full", "finetune.seeds=1"]
    code, out, err = ptmrun(*TINY, *argv, *given)
    assert code == 0, err
    assert ("finetune.statistics=kept: batch normalisation's" in out) == still
    tensors = tensor_files.load(latest() / "checkpoints/finetuned/5-tuned-0.safetensors")[0]
    wanted = {f"encoder.net.{k}": v for k, v in theirs.state_dict().items() if "running" in k}
    assert all(torch.equal(tensors[k], v) for k, v in wanted.items()) == still
    assert not torch.equal(tensors["encoder.net.bn1.weight"], theirs.bn1.weight)
