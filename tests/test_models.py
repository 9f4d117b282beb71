"""Encoders: published sizes, the library's format, adaptation to the image size."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, ViTModel

from ptmrun.batch import ImageSpec
from ptmrun.errors import UserError
from ptmrun.models import vit
from ptmrun.storage import tensor_files


def options(**changes):
    return SimpleNamespace(**{"size": "auto", "patch": "auto", "pool": "mean", "dropout": 0.0} | changes)


def test_published_parameter_count():
    """ViT-B/16 has 86.57 M parameters with its 1000-class head (Dosovitskiy et al. 2021), 85.80 M without."""
    encoder = vit.build(options(size="base", patch=16), ImageSpec(224, 3), "sdpa")
    count = sum(p.numel() for p in encoder.parameters())
    assert count == 85_798_656
    assert round((count + 768 * 1000 + 1000) / 1e6, 2) == 86.57


@pytest.mark.parametrize(
    ("side", "size", "patch"),
    [(8, "micro", 2), (28, "micro", 7), (64, "micro", 16), (96, "micro", 24), (128, "mini", 16), (224, "tiny", 16)],
)
def test_sized_for_the_data(side, size, patch):
    changes, notes = vit.resolve(options(), ImageSpec(side, 1))
    assert changes == {"size": size, "patch": patch}
    assert len(notes) == 2


def test_patch_must_divide():
    with pytest.raises(UserError, match=r"model.patch=5: expected a divisor of the image's side 28: 2, 4, 7, 14"):
        vit.resolve(options(patch=5), ImageSpec(28, 1))
    with pytest.raises(UserError, match="image_size=7"):
        vit.resolve(options(), ImageSpec(7, 1))


def test_loads_in_transformers(tmp_path):
    encoder = vit.build(options(size="micro", patch=7), ImageSpec(28, 1), "eager").eval()
    encoder.save(tmp_path / "encoder", [0.5], [0.25])
    theirs, info = ViTModel.from_pretrained(tmp_path / "encoder", add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        expected = theirs.eval()(images).last_hidden_state[:, 1:].mean(1)
        torch.testing.assert_close(encoder.features(images), expected)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "encoder")
    assert (list(processor.image_mean), list(processor.image_std), processor.size["height"]) == ([0.5], [0.25], 28)


def test_save_and_load_are_exact(tmp_path):
    first, second = (vit.build(options(size="micro", patch=7), ImageSpec(28, 1), "eager") for _ in range(2))
    first.save(tmp_path / "encoder", [0.5], [0.25])
    second.load(tmp_path / "encoder")
    assert tensor_files.sha256(first.state_dict()) == tensor_files.sha256(second.state_dict())


def test_load_names_what_does_not_fit(tmp_path):
    vit.build(options(size="micro", patch=7), ImageSpec(28, 1), "eager").save(tmp_path / "encoder", [0.5], [0.25])
    with pytest.raises(UserError, match="does not fit the model"):
        vit.build(options(size="mini", patch=7), ImageSpec(28, 1), "eager").load(tmp_path / "encoder")
    vit.build(options(size="micro", patch=4), ImageSpec(28, 1), "eager").load(tmp_path / "encoder")  # other patches are adapted
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        vit.build(options(size="micro", patch=7), ImageSpec(28, 1), "eager").load(tmp_path / "encoder")


def test_depth_orders_every_parameter():
    encoder = vit.build(options(size="micro", patch=7), ImageSpec(28, 1), "eager")
    depths = {name: encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert {d for n, d in depths.items() if "embeddings" in n} == {0}
    assert {d for n, d in depths.items() if ".layers.2." in n} == {3}
    assert {d for n, d in depths.items() if n.startswith("vit.layernorm")} == {4}


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_attention_rollout(pool):
    """Against a loop over tokens in double precision (Abnar & Zuidema 2020, equations 1 and 2)."""
    encoder = vit.build(options(size="micro", patch=7, pool=pool), ImageSpec(28, 1), "sdpa").eval()
    images = 3 * torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = encoder.attention(images)
    assert found.shape == (2, 4, 4)
    assert encoder.vit.config._attn_implementation == "sdpa"
    encoder.vit.set_attn_implementation("eager")
    with torch.no_grad():
        blocks = [b.double().numpy() for b in encoder.vit(images, output_attentions=True).attentions]
    assert len(blocks) == 3
    for image in range(2):
        rollout = np.eye(17)
        for block in blocks:
            mixed = np.zeros((17, 17))
            for i in range(17):
                for head in range(3):
                    mixed[i] += block[image, head, i] / 3
                mixed[i, i] += 1
                mixed[i] /= mixed[i].sum()
            rollout = mixed @ rollout
        tokens = range(1, 17) if pool == "mean" else [0]
        expected = sum(rollout[i, 1:] for i in tokens) / len(tokens)
        np.testing.assert_allclose(found[image].flatten().numpy(), expected, atol=1e-6)
        assert expected.std() > 1e-4


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_only_the_last_tokens(attention):
    """The last tokens alone are what they are among all."""
    encoder = vit.build(options(size="micro", patch=2), ImageSpec(8, 1), attention).double()
    tokens = torch.randn(3, 7, 96, dtype=torch.float64)
    torch.testing.assert_close(encoder.encode(tokens, last=4), encoder.encode(tokens)[:, -4:], atol=1e-12, rtol=0)
