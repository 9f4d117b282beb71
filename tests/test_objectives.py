"""Objectives against slow references written from the papers, in float64, and against transformers' own implementations."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.models import vit
from ptmrun.objectives import mae, patches, simmim

SIZE, PATCH, CHANNELS, BATCH = 12, 3, 2, 5


def encoder(dtype=torch.float64):
    torch.manual_seed(0)
    options = SimpleNamespace(size="micro", patch=PATCH, pool="mean", dropout=0.0)
    return vit.build(options, ImageSpec(SIZE, CHANNELS), "eager").to(dtype)


def batch(dtype=torch.float64):
    images = torch.randn(BATCH, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return {"inputs": images, "rows": rng.BatchRandom(0, 3, 0, BATCH, BATCH)}


def mae_options(**changes):
    default = {"mask_ratio": 0.5, "target": "normalised", "decoder_width": 0.67, "decoder_depth": 2}
    return SimpleNamespace(**default | changes)


def cut(image: np.ndarray) -> list[np.ndarray]:
    """Patches row by row, one at a time: [patch, patch, C] each."""
    grid = SIZE // PATCH
    return [
        image[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].transpose(1, 2, 0)
        for r in range(grid)
        for c in range(grid)
    ]


def test_patchify_against_loops():
    images = batch()["inputs"]
    found = patches.patchify(images, PATCH)
    for b in range(BATCH):
        for n, patch in enumerate(cut(images[b].numpy())):
            np.testing.assert_array_equal(found[b, n].numpy(), patch.ravel())
    assert torch.equal(patches.unpatchify(found, PATCH, CHANNELS), images)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_mae_against_the_paper(target):
    """Loss = mean over hidden patches of the mean squared error to the patch, normalised by its own mean and variance."""
    objective = mae.Objective(encoder(), mae_options(target=target)).double()
    data = batch()
    loss, _ = objective(data)
    order = objective.order(data)
    predicted = objective.decoder.decoder_pred(objective.decode(data["inputs"], order)).detach().numpy()
    errors = []
    for b in range(BATCH):
        pieces = cut(data["inputs"][b].numpy())
        for n, place in enumerate(order[b, 8:]):
            wanted = pieces[place].ravel()
            if target == "normalised":
                wanted = (wanted - wanted.mean()) / math.sqrt(wanted.var(ddof=1) + 1e-6)
            errors.append(((predicted[b, n] - wanted) ** 2).mean())
    assert len(errors) == loss.n == BATCH * 8
    assert float(loss.total.detach() / loss.n) == pytest.approx(np.mean(errors), rel=1e-6)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.99, 1), (0.01, 15)])
def test_mae_shows_the_encoder_visible_patches_only(ratio, visible):
    """What is in hidden patches cannot reach the prediction."""
    objective = mae.Objective(encoder(), mae_options(mask_ratio=ratio)).double()
    assert objective.visible == visible
    data = batch()
    order = objective.order(data)
    rank = order.argsort(1)
    pixels = patches.patchify(data["inputs"], PATCH)
    other = torch.where((rank >= visible)[..., None], torch.randn_like(pixels), pixels)
    same = objective.decode(patches.unpatchify(other, PATCH, CHANNELS), order)
    assert torch.equal(same, objective.decode(data["inputs"], order))
    shown = torch.where((rank < visible)[..., None], torch.randn_like(pixels), pixels)
    assert not torch.allclose(objective.decode(patches.unpatchify(shown, PATCH, CHANNELS), order), same)


def test_mae_against_transformers():
    """The same weights and the same mask give transformers' ViTMAEForPreTraining the same loss."""
    ours = mae.Objective(encoder(torch.float32), mae_options())
    config = ViTMAEConfig(
        image_size=SIZE,
        patch_size=PATCH,
        num_channels=CHANNELS,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=384,
        decoder_hidden_size=64,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=256,
        mask_ratio=0.5,
        norm_pix_loss=True,
        attn_implementation="eager",
    )
    theirs = ViTMAEForPreTraining(config)
    theirs.vit.load_state_dict(ours.encoder.vit.state_dict())
    theirs.decoder.load_state_dict(ours.decoder.state_dict())
    data = batch(torch.float32)
    with torch.no_grad():
        loss, _ = ours(data)
        expected = theirs(data["inputs"], noise=data["rows"].uniform("mask", 16)).loss
    assert float(loss.total / loss.n) == pytest.approx(float(expected), rel=1e-5)


def test_simmim_against_the_paper_and_transformers():
    """L1 over hidden pixels; transformers' ViTForMaskedImageModeling with the same weights agrees."""
    ours = simmim.Objective(encoder(torch.float32), SimpleNamespace(mask_ratio=0.5))
    torch.nn.init.normal_(ours.mask_token)
    config = ours.encoder.vit.config
    theirs = ViTForMaskedImageModeling(ViTConfig(**config.to_dict() | {"encoder_stride": PATCH}))
    theirs.vit.load_state_dict({**ours.encoder.vit.state_dict(), "embeddings.mask_token": ours.mask_token})
    # pixel shuffle wants [C, p, p] in a patch, our head gives [p, p, C]
    order = torch.arange(PATCH * PATCH * CHANNELS).reshape(PATCH, PATCH, CHANNELS).permute(2, 0, 1).flatten()
    with torch.no_grad():
        theirs.decoder[0].weight.copy_(ours.head.weight[order][..., None, None])
        theirs.decoder[0].bias.copy_(ours.head.bias[order])
        data = batch(torch.float32)
        hidden = ours.mask(data)
        loss, _ = ours(data)
        predicted = ours.predict(data["inputs"], hidden).numpy()
        expected = theirs(data["inputs"], bool_masked_pos=hidden).loss
    wanted = [patch.ravel() for b in range(BATCH) for n, patch in enumerate(cut(data["inputs"][b].numpy())) if hidden[b, n]]
    errors = np.abs(predicted.reshape(len(wanted), -1) - wanted)
    assert float(loss.total / loss.n) == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(loss.total / loss.n) == pytest.approx(float(expected), rel=1e-4)  # theirs adds 1e-5 to the count


def test_hog_against_loops():
    """Histograms pixel by pixel: two nearest of nine unsigned directions, 2x2 cells a patch, scaled to mean square 1."""
    side, grid, bins = 8, 2, 9
    image = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    padded = np.pad(image[0, 0].numpy(), 1, mode="edge")
    expected = np.zeros((grid * grid, 2, 2, bins))
    for y in range(side):
        for x in range(side):
            gx = padded[y + 1, x + 2] - padded[y + 1, x]
            gy = padded[y + 2, x + 1] - padded[y, x + 1]
            place = (math.atan2(gy, gx) % math.pi) / math.pi * bins
            low, share = int(place) % bins, place - int(place)
            patch, cell = (y // 4) * grid + x // 4, (y % 4 // 2, x % 4 // 2)
            expected[patch][cell][low] += (1 - share) * math.hypot(gx, gy) / 4
            expected[patch][cell][(low + 1) % bins] += share * math.hypot(gx, gy) / 4
    flat = expected.reshape(grid * grid, -1)
    flat = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-2) * math.sqrt(flat.shape[1])
    np.testing.assert_allclose(patches.hog(image, grid)[0].numpy(), flat, atol=1e-9)
    assert patches.hog(torch.zeros(1, 1, side, side), grid).abs().max() == 0
    for value in (math.nan, math.inf):
        assert patches.hog(torch.full((1, 1, side, side), value), grid).isnan().all()


@pytest.mark.parametrize(("side", "cells"), [(8, 4), (28, 8), (9, 7), (5, 5), (6, 8)])
def test_means_of_strips_are_those_of_windows(side, cells):
    """Of windows side by side, windows that overlap, and more windows than pixels."""
    images = torch.randn(3, 2, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    strip, mean = patches.pooling(side, cells)
    sums = images.new_zeros(3, 2, mean.shape[1], mean.shape[1])
    for y, x in itertools.product(range(side), repeat=2):
        sums[..., strip[y], strip[x]] += images[..., y, x]
    torch.testing.assert_close(mean @ sums @ mean.T, F.adaptive_avg_pool2d(images, cells))


def test_hog_loss_is_over_hidden_patches_and_pictures_do_not_teach():
    objective = mae.Objective(encoder(), mae_options(target="hog")).double()
    data = batch()
    loss, parts = objective(data)
    order = objective.order(data)
    predicted = objective.head(objective.decode(data["inputs"], order))
    wanted = patches.hog(data["inputs"], 4)
    by_hand = torch.stack([((predicted[b] - wanted[b, order[b, 8:]]) ** 2).mean() for b in range(BATCH)]).mean()
    assert float((parts["loss_hog"].total / loss.n).detach()) == pytest.approx(float(by_hand.detach()), rel=1e-6)
    parts["loss_pixels"].total.backward()
    assert all(p.grad is None for p in objective.encoder.parameters())
    assert objective.decoder.decoder_pred.weight.grad is not None


@pytest.mark.parametrize("module", [mae, simmim])
def test_mask_statistics(module):
    """Every sample hides the same number of patches, every patch about equally often, and steps differ."""
    objective = module.Objective(encoder(), mae_options(mask_ratio=0.75))
    hidden = []
    for step in range(40):
        noise = rng.BatchRandom(0, step, 0, 64, 64).uniform("mask", 16)
        hidden.append(noise.argsort(1).argsort(1) >= 4)
    stacked = torch.stack(hidden).float()
    assert (stacked.sum(-1) == 12).all()
    assert (stacked.mean((0, 1)) - 0.75).abs().max() < 0.04
    assert not torch.equal(hidden[0], hidden[1])
    assert objective.patches == 16


@pytest.mark.parametrize(
    "make",
    [lambda e: mae.Objective(e, mae_options(target="hog")), lambda e: simmim.Objective(e, SimpleNamespace(mask_ratio=0.5))],
)
def test_pictures_keep_what_was_visible(make):
    objective = make(encoder(torch.float32))
    data = batch(torch.float32)
    shown = objective.pictures(data)
    assert list(shown) == ["original", "masked", "reconstructed"]
    noise = data["rows"].uniform("mask", 16)
    visible = noise.argsort(1).argsort(1) < 8
    for picture in shown.values():
        assert torch.equal(patches.patchify(picture, PATCH)[visible], patches.patchify(data["inputs"], PATCH)[visible])
    pieces = patches.patchify(shown["reconstructed"], PATCH)[~visible]
    assert not torch.isclose(pieces, patches.patchify(data["inputs"], PATCH)[~visible]).all(-1).any()


@pytest.mark.parametrize("target", ["normalised", "hog", "simmim"])
def test_first_predictions_are_about_zero(target):
    """The first loss is that of zeros, within a fifth: a random head of Xavier's would begin several times above it."""
    if target == "simmim":
        objective = simmim.Objective(encoder(), SimpleNamespace(mask_ratio=0.5)).double()
    else:
        objective = mae.Objective(encoder(), mae_options(target=target)).double()
    data = batch()
    loss, _ = objective(data)
    assert float(loss.total.detach() / loss.n) == pytest.approx(objective.initial_loss(data), rel=0.2)
