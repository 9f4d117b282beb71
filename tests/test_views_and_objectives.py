"""Objectives that compare views, mixing and views, against float64 loops written from the papers, and against lightly."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import HandMade
from scipy import stats
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.data.images import augment, mixup, views
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.images.split import Split
from ptmrun.downstream.classification import AUXILIARY
from ptmrun.objectives import byol, dino, simclr, simmim, supervised, teacher

MOVING = compose([]).dataset.augment


class Given(HandMade):
    """An encoder whose features are a linear map of the pixels."""

    def __init__(self, pixels: int, width: int):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(pixels, width)

    def features(self, images):
        return self.linear(images.flatten(1))


def seen(count, batch=6, side=4):
    """A batch of views, float64."""
    generator = torch.Generator().manual_seed(4)
    return {
        "views": torch.randn(count, batch, 1, side, side, generator=generator, dtype=torch.float64),
        "ids": torch.arange(batch),
    }


def build(module, **options):
    torch.manual_seed(0)
    return module.Objective(Given(16, 12), SimpleNamespace(**options)).double()


def mean(loss):
    return float(loss.total.detach() / loss.n)


def unit(x):
    return x / np.linalg.norm(x)


def nt_xent_by_hand(first, second, temperature):
    """SimCLR, equation 1 and algorithm 1, one pair at a time."""
    z = [unit(x) for x in (*first, *second)]
    count, total = len(z), 0.0
    for i in range(count):
        j = (i + count // 2) % count
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(count) if k != i)
        total -= math.log(math.exp(float(z[i] @ z[j]) / temperature) / others)
    return total / count


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_simclr_against_the_paper(temperature):
    objective = build(simclr, temperature=temperature, hidden=16, projection=8)
    batch = seen(2)
    loss, shown = objective(batch)
    first, second = (objective.head(objective.encoder.features(v)).detach().numpy() for v in batch["views"])
    assert mean(loss) == pytest.approx(nt_xent_by_hand(first, second, temperature), rel=1e-5)
    z = np.array([unit(x) for x in (*first, *second)])
    similar = z @ z.T - 10 * np.eye(len(z))
    assert float(shown["positive_first"].total) == sum(similar[i].argmax() == (i + 6) % 12 for i in range(12))
    same = {"views": torch.ones_like(batch["views"]), "ids": batch["ids"]}
    assert mean(objective(same)[0]) == pytest.approx(objective.initial_loss(same), rel=1e-6)


def test_byol_against_the_paper():
    """Equation 2 in both directions; the teacher is the student at first and then elsewhere."""
    objective = build(byol, momentum=0.9, hidden=16, projection=8)
    batch = seen(2)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    loss, _ = objective(batch)
    both = batch["views"].flatten(0, 1)
    said = objective.predictor(objective.projector(objective.encoder.features(both))).detach().numpy()
    wanted = objective.teacher[1](objective.teacher[0].features(both)).numpy()
    total = 0.0
    for i in range(6):
        for a, b in ((i, i + 6), (i + 6, i)):
            total += float(((unit(said[a]) - unit(wanted[b])) ** 2).sum())
    assert mean(loss) == pytest.approx(total / 6, rel=1e-5)
    loss.total.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())


def test_teachers_follow_with_a_momentum_that_grows_to_one():
    """tau = 1 - (1 - base) (cos(pi k / K) + 1) / 2 (BYOL, section 3.3)."""
    objective = build(byol, momentum=0.8, hidden=16, projection=8)
    expected = [p.numpy().copy() for p in objective.teacher.parameters()]
    for step in range(1, 5):
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        objective.after_step(step, 4)
        tau = 1 - (1 - 0.8) * (math.cos(math.pi * step / 4) + 1) / 2
        students = [*objective.encoder.parameters(), *objective.projector.parameters()]
        expected = [tau * t + (1 - tau) * s.detach().numpy() for t, s in zip(expected, students, strict=True)]
        for found, wanted in zip(objective.teacher.parameters(), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)
    assert teacher.momentum_at(0.8, 0.0) == pytest.approx(0.8)
    assert teacher.momentum_at(0.8, 1.0) == 1.0


DINO = {"prototypes": 10, "hidden": 16, "bottleneck": 8, "momentum": 0.9, "center_momentum": 0.7, "student_temperature": 0.1,
        "first_temperature": 0.04, "teacher_temperature": 0.07, "warmup": 0.5}  # fmt: skip


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def outputs_of_dino(objective, batch):
    """(student's, teacher's) outputs of all views [V, B, K], and of the first two."""
    views = batch["views"]
    student = objective.head(objective.encoder.features(views.flatten(0, 1))).unflatten(0, views.shape[:2])
    with torch.no_grad():
        wanted = objective.teacher[1](objective.teacher[0].features(views[:2].flatten(0, 1))).unflatten(0, (2, -1))
    return student.detach().numpy(), wanted.numpy()


@pytest.mark.parametrize("count", [2, 4])
def test_dino_against_the_paper(count):
    """Algorithm 1 over several steps: centring, sharpening, other views only, the centre's update, the temperature's warm-up."""
    objective = build(dino, **DINO)
    with torch.no_grad():
        for parameter in objective.teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    batch, center = seen(count), np.zeros(10)
    for step in range(6):
        temperature = 0.04 + (0.07 - 0.04) * min(1.0, (step / 6) / 0.5)
        loss, shown = objective(batch)
        student, wanted = outputs_of_dino(objective, batch)
        total, pairs, entropy = 0.0, 0, 0.0
        for i in range(2):
            for b in range(6):
                p = softmax((wanted[i, b] - center) / temperature)
                entropy -= float((p * np.log(p)).sum())
                for j in range(count):
                    if i != j:
                        total -= float((p * np.log(softmax(student[j, b] / 0.1))).sum())
                        pairs += 1
        assert mean(loss) == pytest.approx(total / pairs, rel=1e-5)
        assert mean(shown["teacher_entropy"]) == pytest.approx(entropy / 12, rel=1e-5)
        center = 0.7 * center + 0.3 * wanted.reshape(-1, 10).mean(0)
        objective.after_step(step + 1, 6)
        np.testing.assert_allclose(objective.center.numpy(), center, rtol=1e-6, atol=1e-12)


def test_simclr_byol_and_dino_against_lightly():
    loss = pytest.importorskip("lightly.loss")
    objective, batch = build(simclr, temperature=0.2, hidden=16, projection=8), seen(2)
    first, second = (objective.head(objective.encoder.features(v)) for v in batch["views"])
    assert mean(objective(batch)[0]) == pytest.approx(float(loss.NTXentLoss(0.2)(first, second).detach()), rel=1e-5)

    objective = build(byol, momentum=0.9, hidden=16, projection=8)
    both = batch["views"].flatten(0, 1)
    said = objective.predictor(objective.projector(objective.encoder.features(both))).chunk(2)
    wanted = objective.teacher[1](objective.teacher[0].features(both)).chunk(2)
    near = loss.NegativeCosineSimilarity()
    expected = 4 + 2 * float((near(said[0], wanted[1]) + near(said[1], wanted[0])).detach())
    assert mean(objective(batch)[0]) == pytest.approx(expected, rel=1e-5)

    objective, batch = build(dino, **DINO), seen(4)
    theirs = loss.DINOLoss(10, 0.04, 0.07, 4, student_temp=0.1, center_momentum=0.7).double()
    for step in range(3):  # their temperature grows by the epoch: 0.04, 0.05, 0.06
        objective.progress.fill_(0.5 * step / 3)
        found, _ = objective(batch)
        student, wanted = map(torch.from_numpy, outputs_of_dino(objective, batch))
        assert mean(found) == pytest.approx(float(theirs(list(wanted), list(student), epoch=step)), rel=1e-5)
        objective.after_step(1, 10)


class Maps(HandMade):
    """An encoder with maps, of half the image's side."""

    def __init__(self, side, channels):
        super().__init__()
        self.side, self.channels, self.map_shape, self.width = side, channels, (5, side // 2), 5
        self.convolution = nn.Conv2d(channels, 5, 4, 2, 1)

    def feature_map(self, images):
        return self.convolution(images)


def test_simmim_of_encoders_with_maps_against_the_paper():
    """L1 over hidden pixels only, and nothing that is under the mask reaches the prediction."""
    torch.manual_seed(0)
    objective = simmim.Objective(Maps(14, 2), SimpleNamespace(mask_ratio=0.4)).double()
    nn.init.normal_(objective.mask_token)
    assert (objective.patch, objective.hidden) == (2, 20)
    images = torch.randn(3, 2, 14, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = {"inputs": images, "rows": rng.BatchRandom(0, 3, 0, 3, 3)}
    hidden = objective.mask(data)
    assert (hidden.sum(1) == 20).all()
    covered = images.clone()
    mask = np.zeros((3, 14, 14), bool)
    for b in range(3):
        for n in range(49):
            if hidden[b, n]:
                y, x = 2 * (n // 7), 2 * (n % 7)
                mask[b, y : y + 2, x : x + 2] = True
                for c in range(2):
                    covered[b, c, y : y + 2, x : x + 2] = objective.mask_token.detach()[0, c, 0, 0]
    maps = objective.encoder.feature_map(covered)
    predicted = objective.head(maps).detach().numpy()
    errors = [abs(predicted[b, c, y, x] - float(images[b, c, y, x])) for b, y, x in np.argwhere(mask) for c in range(2)]
    loss, _ = objective(data)
    assert mean(loss) == pytest.approx(np.mean(errors), rel=1e-6)
    other = torch.where(torch.from_numpy(mask)[:, None], torch.randn_like(images), images)
    assert torch.equal(objective.predict(other, hidden), objective.predict(images, hidden))
    shown = torch.where(torch.from_numpy(mask)[:, None], images, torch.randn_like(images))
    assert not torch.allclose(objective.predict(shown, hidden), objective.predict(images, hidden))


def smoothed_by_hand(logits, label, smoothing):
    """Cross-entropy under (1 - s) one-hot + s / K (Szegedy et al. 2016, section 7)."""
    wanted = np.full(len(logits), smoothing / len(logits))
    wanted[label] += 1 - smoothing
    return -float((wanted * np.log(softmax(logits))).sum())


class WithBranch(Given):
    auxiliary_width = 7

    def __init__(self):
        super().__init__(16, 12)
        self.branch, self.asked = nn.Linear(16, 7), False

    def auxiliary(self):
        self.asked = True

    def both(self, images):
        return self.features(images), self.branch(images.flatten(1))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("branch", [False, True])
def test_supervised_against_the_formulas(mixed, branch):
    torch.manual_seed(0)
    options = SimpleNamespace(label_smoothing=0.1, mixup=0.2, cutmix=0.0)
    objective = supervised.Objective(WithBranch() if branch else Given(16, 12), options, 5)
    images, labels, partners = torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 0, 4, 3, 2])
    batch = {"inputs": images, "labels": labels, "ids": torch.arange(6)}
    share = torch.tensor([1.0, 0.0, 0.3, 0.8, 0.5, 0.99]) if mixed else torch.ones(6)
    if mixed:
        batch |= {"share": share, "partners": partners}
    loss, shown = objective(batch)
    heads = [(objective.head(objective.encoder.features(images)), 1.0)]
    if branch:
        assert objective.encoder.asked
        heads.append((objective.auxiliary_head(objective.encoder.both(images)[1]), 0.4))
        assert AUXILIARY == 0.4
    total = 0.0
    for logits, weight in heads:
        for i, row in enumerate(logits.detach().double().numpy()):
            own, other = (smoothed_by_hand(row, int(y[i]), 0.1) for y in (labels, partners))
            total += weight * (float(share[i]) * own + (1 - float(share[i])) * other)
    assert mean(loss) == pytest.approx(total / 6, rel=1e-5)
    assert ("accuracy" in shown) != mixed


# views


def rows(step=0, start=0, stop=64, total=64, seed=0):
    return rng.BatchRandom(seed, step, start, stop, total)


@pytest.mark.parametrize("least", [0.08, 0.3, 0.9])
def test_crops_stay_inside_with_the_area_and_ratio_asked_for(least):
    maps = views.crop(least, torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))).double()
    width, height, x, y = maps[:, 0, 0], maps[:, 1, 1], maps[:, 0, 2], maps[:, 1, 2]
    for centre, side in ((x, width), (y, height)):
        assert (centre.abs() + side).max() <= 1 + 1e-6
    area, ratio = width * height, width / height
    assert area.min() >= least - 1e-6
    assert area.max() <= 1 + 1e-6
    assert stats.kstest(area.numpy(), stats.uniform(least, 1 - least).cdf).pvalue > 1e-3
    assert ratio.min() >= 3 / 4 - 1e-6
    assert ratio.max() <= 4 / 3 + 1e-6
    assert abs(float(ratio.log().mean())) < 0.01
    if least < 0.5:
        assert ratio.max() > 1.3
    assert (maps[:, 0, 1] == 0).all()
    assert (maps[:, 1, 0] == 0).all()


def test_a_crop_of_a_ramp_shows_its_place():
    """Pixels of the crop are the image's own values there, by the map's corners."""
    ramp = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64).expand(1, 1, 64, 64)
    maps = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.7, -0.1]]])
    across, down = augment.warp(ramp, maps)[0, 0], augment.warp(ramp.mT, maps)[0, 0]
    places = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64)
    torch.testing.assert_close(across[30], 0.5 * places + 0.25, rtol=0, atol=1e-5)
    torch.testing.assert_close(down[:, 30], 0.7 * places - 0.1, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
def test_blur_against_torchvision(sigma):
    x = torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = views.blur(x, torch.tensor([sigma, 0.0, 2 * sigma], dtype=torch.float64), 4)
    inner = (..., slice(4, -4), slice(4, -4))  # torchvision mirrors the edges, we repeat them
    for i, s in ((0, sigma), (2, 2 * sigma)):
        torch.testing.assert_close(found[i][inner], gaussian_blur(x[i], [9, 9], [s, s])[inner], rtol=1e-10, atol=1e-12)
    assert torch.equal(found[1], x[1])


def test_colour():
    x = torch.randn(500, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    drawn = torch.rand(500, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(views.colour(x, 0.0, drawn), x)
    gray = x[:, :1].repeat(1, 3, 1, 1)
    found = views.colour(gray, 1.0, drawn)
    assert (found - found.mean(1, keepdim=True)).abs().max() < 1e-5, "gray images stay gray"
    found = views.colour(x, 1.0, drawn)
    spread = (found - found.mean(1, keepdim=True)).abs().amax((1, 2, 3))
    assert torch.equal(spread < 1e-4, drawn[:, 5] < 0.2), "one in five becomes gray"
    plain = (drawn[:, 4] >= 0.8) & (drawn[:, 5] >= 0.2)
    torch.testing.assert_close(found[plain], x[plain], rtol=1e-4, atol=1e-4)
    luminance = torch.tensor([0.299, 0.587, 0.114])
    turn = torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.0, 0.9]]).expand(500, 6)  # hue alone
    before, after = (torch.einsum("c,bchw->bhw", luminance, y) for y in (x, views.colour(x, 1.0, turn)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert (views.colour(x, 1.0, turn) - x).abs().max() > 0.1
    one = views.colour(x[:, :1], 0.5, drawn)  # one channel: brightness and contrast alone, an affine map of each image
    for i in range(20):
        slope, _, r, *_ = stats.linregress(x[i, 0].flatten().numpy(), one[i, 0].flatten().numpy())
        assert r > 0.9999
        assert 0.59 < slope < 1.41


WANTED = SimpleNamespace(views=3, crop=0.3, colour=0.5, blur=0.5)


def test_views_depend_on_seed_step_and_row_only():
    x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = views.make(x, MOVING, 1.0, WANTED, rows(2, 0, 12, 12))
    assert whole.shape == (3, 12, 3, 16, 16)
    parts = [views.make(x[a:b], MOVING, 1.0, WANTED, rows(2, a, b, 12)) for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-6)
    assert torch.equal(views.make(x, MOVING, 1.0, WANTED, rows(2, 0, 12, 12)), whole)
    for other in (rows(3, 0, 12, 12), rows(2, 0, 12, 12, seed=1)):
        assert not torch.allclose(views.make(x, MOVING, 1.0, WANTED, other), whole, atol=0.1)
    assert not torch.allclose(whole[0], whole[1], atol=0.1)
    same = views.make(x[:1].repeat(12, 1, 1, 1), MOVING, 1.0, WANTED, rows(2, 0, 12, 12))
    assert len({float(v.sum()) for v in same[0]}) == 12


# mixing


def test_mixup_shares_follow_the_beta_distribution():
    n, ones = 4000, torch.ones(4000, 1, 3, 3)
    mixed, share = mixup.mix(ones, 0 * ones, (0.4, 0.0), rows(0, 0, n, n))
    assert stats.kstest(share.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    torch.testing.assert_close(mixed, share[:, None, None, None].expand_as(mixed))


def test_cutmix_follows_the_paper():
    """A box of area 1 - lambda around a uniform centre, cut off at the edges; the share is what is left (appendix A)."""
    n, side = 3000, 32
    ones = torch.ones(n, 1, side, side)
    mixed, share = mixup.mix(ones, 0 * ones, (0.0, 1.0), rows(0, 0, n, n))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), share)
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    generator, expected = np.random.default_rng(0), []
    for _ in range(n):
        cut, centre = side * math.sqrt(1 - generator.beta(1, 1)), side * generator.random(2)
        (a, b), (c, d) = ((max(0, round(m - cut / 2)), min(side, round(m + cut / 2))) for m in centre)
        expected.append(1 - (b - a) * (d - c) / side**2)
    assert stats.ks_2samp(share.numpy(), expected).pvalue > 1e-3
    holes = (mixed[:, 0] == 0).numpy()
    for hole in holes[:200]:  # one rectangle
        assert hole.sum() == hole.any(0).sum() * hole.any(1).sum()


def test_either_one_of_both():
    n, ones = 2000, torch.ones(2000, 1, 8, 8)
    mixed, share = mixup.mix(ones, 0 * ones, (1.0, 1.0), rows(0, 0, n, n))
    cut = mixed.flatten(1).max(1).values != mixed.flatten(1).min(1).values
    assert 0.4 < float(cut.float().mean()) < 0.55
    torch.testing.assert_close(mixed.mean((1, 2, 3)), share)


def constant_images(accumulate, strength=1.0):
    """Batches of images that are their id's shade all over, mixed."""
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    split = Split(pixels, None, torch.arange(40), torch.arange(40) % 7)
    normalise = ImageProcessor(torch.zeros(1), torch.ones(1) / 255, torch.device("cpu"))
    return Batches(split, normalise, MOVING, strength, 40, accumulate, 3, "x", None, (0.0, 1.0))


def test_partners_and_shares_are_what_is_seen():
    """Partners are a permutation; the share is the area kept after augmentation too; micro-batches change nothing."""
    (whole,), parts = next(constant_images(1).iterate(5, 6)), next(constant_images(3).iterate(5, 6))
    for name in ("inputs", "share", "partners", "labels", "ids"):
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), whole[name])
    own = whole["ids"].float()
    partner = torch.tensor([float(x[(x - i).abs() > 0.5].mean()) if s < 1 else -1 for x, i, s in zip(
        whole["inputs"], own, whole["share"], strict=True)])  # fmt: skip
    known = (partner >= 0) & ~partner.isnan()
    assert known.sum() > 25
    assert torch.equal(partner[known].round().long() % 7, whole["partners"][known])
    assert len(partner[known].round().unique()) == known.sum(), "no image is the partner of two"
    expected = whole["share"] * own + (1 - whole["share"]) * partner
    torch.testing.assert_close(whole["inputs"].mean((1, 2, 3))[known], expected[known], rtol=1e-4, atol=1e-3)
