"""Counted floating-point operations against published and analytic numbers."""

import contextlib

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

from ptmrun.loss import Learner, Loss
from ptmrun.training import flops


def of(work) -> int:
    with flops.counter() as counted:
        work()
    return counted.get_total_flops()


def forward(model: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.device("meta"), torch.no_grad():
        return of(lambda: model.eval()(*inputs))


def test_published_counts():
    """Multiply-adds of one image: 17.58 thousand million of ViT-B/16 (torchvision's documentation, which adds the classifier) and
    4.09 of ResNet-50."""
    with torch.device("meta"):
        image = torch.empty(1, 3, 224, 224)
        vit, resnet = ViTModel(ViTConfig(), add_pooling_layer=False), torchvision.models.resnet50()
    assert forward(vit, image) == pytest.approx(2 * 17.58e9, rel=0.02)
    assert forward(resnet, image) == pytest.approx(2 * 4.09e9, rel=0.02)


def test_analytic_counts():
    """Of T tokens, L layers of width d and V words: 24 T d^2 L of the layers' products, 4 T^2 d L of attention, 2 T d V of the
    words."""
    d, layers, words = 768, 12, 50257
    with torch.device("meta"):
        bert, gpt = BertModel(BertConfig(), add_pooling_layer=False), GPT2LMHeadModel(GPT2Config())
        ids = {n: torch.empty(1, n, dtype=torch.long) for n in (128, 1024)}

    def analytic(n):
        return 24 * n * d * d * layers + 4 * n * n * d * layers

    assert forward(bert, ids[128]) == pytest.approx(analytic(128), rel=0.02)
    assert forward(gpt, ids[1024]) == pytest.approx(analytic(1024) + 2 * 1024 * d * words, rel=0.02)


class Plain(Learner):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, batch):
        return Loss(self.network(batch["inputs"]).square().sum(), len(batch["ids"])), {}


def step(network: nn.Module, *shape: int, parts: int = 1) -> float:
    """Of a training step on random inputs [B, ...], in micro-batches."""
    micros = [{"inputs": x, "ids": torch.arange(len(x))} for x in torch.randn(shape).chunk(parts)]
    return flops.of_steps(Plain(network), [micros], lambda _: contextlib.nullcontext())


def test_a_step_takes_the_forward_pass_and_twice_that_backward():
    """The first layer needs no gradient of its inputs: 2 * 5 * 8 * 4 operations less."""
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    pass_ = 2 * 5 * (8 * 4 + 4 * 3)
    assert step(network, 5, 8) == 3 * pass_ - 2 * 5 * 8 * 4
    assert step(network, 6, 8, parts=3) == step(network, 6, 8)


def test_several_steps_are_averaged():
    network = nn.Linear(8, 4, bias=False)
    steps = [[{"inputs": torch.randn(n, 8), "ids": torch.arange(n)}] for n in (1, 3)]
    assert flops.of_steps(Plain(network), steps, lambda _: contextlib.nullcontext()) == 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize("mask", [False, True])
def test_attention_counts_the_same_in_every_implementation(mask):
    """4 * B * heads * T^2 * d forward, twice that backward."""
    q, k, v = (torch.randn(2, 3, 16, 32, requires_grad=True) for _ in range(3))
    allowed = torch.ones(16, 16, dtype=torch.bool) if mask else None

    def fused():
        F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).sum().backward()

    def eager():
        ((q @ k.transpose(2, 3)).softmax(-1) @ v).sum().backward()

    assert of(fused) == of(eager) == 3 * 4 * 2 * 3 * 16 * 16 * 32


def test_a_recurrent_layer_counts_its_steps():
    """Of each token 4 gates from the input and from the state."""
    layer, inputs = nn.LSTM(6, 8, batch_first=True), torch.randn(2, 5, 6, requires_grad=True)
    each = 2 * 2 * 5 * 4 * 8 * (6 + 8)
    assert of(lambda: layer(inputs)) == each
    assert of(lambda: layer(inputs)[0].sum().backward()) == 3 * each
    packed = nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor([5, 5]), batch_first=True)
    assert of(lambda: layer(packed)) == each, "written out, step by step"
