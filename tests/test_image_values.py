"""Pixel values on their way to the model: resizing, standardisation, geometry, colour; and how much is held out."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.data import splits
from ptmrun.data.images import augment, decode, views
from ptmrun.data.images import load as images
from ptmrun.data.images.split import Split
from ptmrun.data.sources import Part, Source


def source_of(pixels, labels):
    return lambda options: Source({"train": Part(pixels, labels)}, ["a", "b"], "made", [])


@pytest.fixture(scope="module")
def colour_images():
    """300 images 8x8, uint8, whose channels differ in mean and deviation."""
    drawn = np.random.default_rng(0).normal([60, 120, 200], [10, 30, 20], size=(300, 8, 8, 3))
    return drawn.clip(0, 255).astype(np.uint8), np.arange(300) % 2


def test_training_images_have_mean_0_and_deviation_1(colour_images):
    """Each channel, over the training split; other splits are shifted and scaled by the same numbers."""
    data = images.load(source_of(*colour_images), compose([]).dataset, 0, lambda *_: None)
    processor = data.processor(torch.device("cpu"))
    standardised = processor(data.train.pixels[data.train.rows])
    assert standardised.shape == (216, 3, 8, 8)
    for channel in standardised.double().transpose(0, 1):
        assert float(channel.mean()) == pytest.approx(0, abs=1e-5)
        assert float(channel.std(correction=0)) == pytest.approx(1, abs=1e-5)
    raw = colour_images[0][data.train.rows.numpy()].astype(float) / 255
    assert data.mean.tolist() == pytest.approx(raw.mean((0, 1, 2)).tolist(), rel=1e-5)
    assert data.std.tolist() == pytest.approx(raw.std((0, 1, 2)).tolist(), rel=1e-5)
    test = next(data.test.batches([torch.arange(20)]))
    by_hand = (colour_images[0][data.test.rows[:20].numpy()] / 255 - raw.mean((0, 1, 2))) / raw.std((0, 1, 2))
    np.testing.assert_allclose(processor(test), by_hand.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(processor.back(processor(test)), test / 255, atol=1e-6, rtol=0)


def test_given_means_and_deviations_are_applied(colour_images):
    """(x / 255 - mean) / std: of a pixel 51 = 0.2 * 255 with mean 0.5 and deviation 0.25 it is -1.2."""
    options = compose(["dataset.normalise=[0.5,0.5,0.1,0.25,0.5,0.1]"]).dataset
    data = images.load(source_of(*colour_images), options, 0, lambda *_: None)
    found = data.processor(torch.device("cpu"))(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1.2, -0.6, 1.0], abs=1e-6)


def test_constant_images_are_not_divided_by_0():
    split = Split(torch.full((10, 1, 4, 4), 255, dtype=torch.uint8), None, torch.arange(10), None)
    mean, std = images.moments(split)
    assert (mean.item(), std.item()) == (1.0, pytest.approx(1e-3))


def test_smaller_images_are_averages():
    """A chessboard of 0 and 200 at half the side is 100 all over; the nearest pixels would give 0 or 200."""
    board = np.indices((16, 16)).sum(0) % 2 * 200
    found = decode.tensor(Image.fromarray(board.astype(np.uint8)), 8, 1)
    assert (found[0, 1:-1, 1:-1].int() - 100).abs().max() <= 1
    assert (found.int() - 100).abs().max() <= 5


def test_larger_images_are_interpolated():
    """Bilinear, doubled: between two pixels 0 and 200 the values are 50 and 150."""
    columns = Image.fromarray(np.tile(np.array([0, 200], dtype=np.uint8), (2, 1)))
    assert decode.tensor(columns, 4, 1)[0, 0].tolist() == [0, 50, 150, 200]


def identity(*shift):
    return torch.tensor([[[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]]])


def test_warped_images_are_interpolated_and_edges_repeated():
    """A ramp moved by a quarter of a pixel is a quarter larger; coordinates -1 ... 1 are 8 pixels."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    found = augment.warp(ramp, identity(0.25 * 2 / 8, 0.0))
    assert found[0, 0, 3].tolist() == pytest.approx([0.25, 1.25, 2.25, 3.25, 4.25, 5.25, 6.25, 7.0], abs=1e-5)
    down = augment.warp(ramp.transpose(2, 3), identity(0.0, -2.5 * 2 / 8))
    assert down[0, 0, :, 3].tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.5], abs=1e-5)


NOTHING = {"shift": 0.0, "rotate": 0.0, "scale": 0.0, "shear": 0.0, "flip": False}
MANY = rng.BatchRandom(0, 0, 0, 4000, 4000)


def maps(strength=1.0, **changes):
    """Affine maps of 4000 images, float64 [4000, 2, 3]."""
    options = compose([]).dataset.augment.model_copy(update=NOTHING | changes)
    return augment.geometry(options, strength, MANY, "test").double()


@pytest.mark.parametrize(("strength", "most"), [(1.0, 1.5), (0.5, math.sqrt(1.5)), (2.0, 2.25)])
def test_zoom_is_as_large_as_the_setting_says(strength, most):
    """scale=0.5: the same factor along both axes, from 1 / 1.5 to 1.5, as often larger as smaller, even in its logarithm."""
    found = maps(strength, scale=0.5)
    zoom = found[:, 0, 0]
    torch.testing.assert_close(found, zoom[:, None, None] * torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]).double())
    assert 1 / most <= zoom.min() < 1.01 / most
    assert most / 1.01 < zoom.max() <= most + 1e-6
    quartiles = zoom.log().quantile(torch.tensor([0.25, 0.5, 0.75]).double()) / math.log(most)
    assert quartiles.tolist() == pytest.approx([-0.5, 0.0, 0.5], abs=0.05)


def test_zoomed_images_show_more_or_less_of_a_ramp():
    """The slope of a ramp about the centre is the factor, and the centre stays."""
    ramp = torch.linspace(-1 + 1 / 16, 1 - 1 / 16, 16).expand(200, 1, 16, 16)
    options = compose([]).dataset.augment.model_copy(update=NOTHING | {"scale": 0.2})
    found = augment.augment(ramp, options, 1.0, rng.BatchRandom(0, 0, 0, 200, 200))[:, 0, 8]
    slope = (found[:, 9] - found[:, 6]) / (ramp[0, 0, 0, 9] - ramp[0, 0, 0, 6])
    assert 1 / 1.2 - 1e-4 <= slope.min() < 0.86
    assert 1.16 < slope.max() <= 1.2 + 1e-4
    torch.testing.assert_close(found[:, 7] + found[:, 8], torch.zeros(200), atol=1e-5, rtol=0)


def test_rotation_shear_and_shift_are_as_large_as_the_settings_say():
    """rotate and shear in degrees; shift as a share of the side, of which coordinates -1 ... 1 make 2."""
    turned = maps(rotate=30.0)
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).rad2deg()
    assert (float(angle.min()), float(angle.max())) == pytest.approx((-30, 30), abs=0.1)
    torch.testing.assert_close(turned[:, :, :2].det(), torch.ones(4000).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(turned[:, 0, 1], -turned[:, 1, 0])
    sheared = maps(shear=20.0)
    angle = torch.atan(sheared[:, 0, 1]).rad2deg()
    assert (float(angle.min()), float(angle.max())) == pytest.approx((-20, 20), abs=0.1)
    assert (sheared[:, 0, 0] == 1).all()
    assert (sheared[:, 1] == torch.tensor([0, 1, 0])).all()
    moved = maps(shift=0.1)
    for axis in (0, 1):
        assert (float(moved[:, axis, 2].min()), float(moved[:, axis, 2].max())) == pytest.approx((-0.2, 0.2), abs=1e-3)
    assert (moved[:, :, :2] == torch.eye(2)).all()
    assert abs(float(np.corrcoef(moved[:, 0, 2], moved[:, 1, 2])[0, 1])) < 0.05


PIXELS = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
HALF = 0.5  # a number drawn that changes nothing


def jittered(strength=1.0, bright=HALF, contrast=HALF, saturation=HALF, hue=HALF, applied=0.0, gray=0.9):
    return views.colour(PIXELS, strength, torch.tensor([[bright, contrast, saturation, hue, applied, gray]]))


def chroma(image):
    """I and Q of the NTSC standard as one complex number, [6, 6]; the matrix is that of Python's colorsys."""
    r, g, b = image[0].double()
    y = 0.30 * r + 0.59 * g + 0.11 * b
    return (0.74 * (r - y) - 0.27 * (b - y)) + 1j * (0.48 * (r - y) + 0.41 * (b - y))


@pytest.mark.parametrize(("strength", "drawn", "turn"), [(1.0, 1.0, 0.2), (1.0, 0.0, -0.2), (0.5, 1.0, 0.1), (1.0, 0.75, 0.1)])
def test_hue_turns_by_at_most_a_fifth_of_a_circle_times_the_strength(strength, drawn, turn):
    """SimCLR's ColorJitter(0.8 s, 0.8 s, 0.8 s, 0.2 s): the last is a share of the full circle."""
    angles = torch.angle(chroma(jittered(strength, hue=drawn)) / chroma(PIXELS)) / (2 * math.pi)
    assert float(angles.median()) == pytest.approx(turn, abs=0.005)
    ratio = chroma(jittered(strength, hue=drawn)).abs() / chroma(PIXELS).abs()
    assert float(ratio.median()) == pytest.approx(1, abs=0.02), "the saturation stays"


def test_brightness_contrast_and_saturation_change_by_four_fifths_of_the_strength():
    torch.testing.assert_close(jittered(), PIXELS, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jittered(bright=1.0), PIXELS + 0.8, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jittered(0.5, bright=0.0), PIXELS - 0.4, atol=1e-4, rtol=1e-4)
    mean = PIXELS.mean()
    torch.testing.assert_close(jittered(contrast=1.0), mean + 1.8 * (PIXELS - mean), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(jittered(0.5, contrast=0.0), mean + 0.6 * (PIXELS - mean), atol=1e-4, rtol=1e-4)
    luminance = torch.einsum("c,bchw->bhw", torch.tensor([0.299, 0.587, 0.114]), PIXELS)[:, None]
    vivid = luminance + 1.8 * (PIXELS - luminance)
    torch.testing.assert_close(jittered(saturation=1.0), vivid, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(jittered(gray=0.1), luminance.expand(-1, 3, -1, -1), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(jittered(bright=1.0, contrast=0.0, hue=1.0, applied=0.9), PIXELS, atol=1e-4, rtol=1e-4)


def unlabelled(count):
    return Split(torch.zeros(count, 1, 2, 2, dtype=torch.uint8), None, torch.arange(count), None)


def labelled(*counts):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    return Split(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), None, torch.arange(len(labels)), labels)


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((18, 18), 0.1, [2, 2]),  # of 1.8
        ((16, 14), 0.1, [2, 1]),  # of 1.6 and 1.4
        ((19, 5, 97), 0.2, [4, 1, 19]),  # of 3.8, 1.0 and 19.4
        ((7, 3), 0.25, [2, 1]),  # of 1.75 and 0.75
        ((4, 100), 0.1, [0, 10]),  # of 0.4
    ],
)
def test_the_held_out_share_of_each_class_is_rounded(counts, fraction, expected):
    rest, held = splits.hold_out(labelled(*counts), fraction, 0, "val")
    assert torch.bincount(held.labels, minlength=len(counts)).tolist() == expected
    assert sorted(rest.rows.tolist() + held.rows.tolist()) == list(range(sum(counts)))


@pytest.mark.parametrize(("count", "fraction", "expected"), [(18, 0.1, 2), (15, 0.25, 4), (14, 0.1, 1), (3, 0.1, 1), (1, 0.9, 1)])
def test_the_held_out_share_without_classes_is_rounded(count, fraction, expected):
    """And where there are two samples at least one is held out."""
    rest, held = splits.hold_out(unlabelled(count), fraction, 0, "val")
    assert (len(held), len(rest)) == (expected, count - expected)


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ((4,) * 400, 0.1, 160),  # 0.4 of each class
        ((12, 12), 0.2, 5),  # 2.4 of each
        ((5, 5, 5), 0.3, 4),  # 1.5 of each, rounded to 2: one class gives one less
        ((1, 1, 1), 0.5, 2),
    ],
)
def test_the_held_out_shares_add_up_to_that_of_all(counts, fraction, expected):
    _, held = splits.hold_out(labelled(*counts), fraction, 0, "val")
    each = torch.bincount(held.labels, minlength=len(counts))
    assert int(each.sum()) == expected
    assert int(each.max() - each.min()) <= 1


def test_test_and_validation_shares_are_not_confused():
    options = SimpleNamespace(
        folds=None, fold=0, split_seed=0, test_fraction=0.3, val_fraction=0.1, limit=None, test_limit=None, name="x"
    )
    train, val, test, made = splits.divide({"train": labelled(50, 50)}, options, "images", [])
    assert (len(train), len(val), len(test)) == (63, 7, 30)  # 15 of each 50, then 7 of twice 35: 4 and 3
    assert made.keys() == {"train", "val", "test"}
    assert sorted(train.rows.tolist() + val.rows.tolist() + test.rows.tolist()) == list(range(100))
