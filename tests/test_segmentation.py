"""Semantic segmentation: masks of files, of COCO's format and drawn ones; heads, scores, floors; whole runs."""

import dataclasses
import json
import math
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CNN, latest
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score
from torchvision import tv_tensors
from torchvision.transforms import v2

import ptmrun as ptmrun_package
from ptmrun import rng
from ptmrun.batch import ImageSpec
from ptmrun.compose import compose
from ptmrun.config import choices, parsing
from ptmrun.data.images import masks as image_masks
from ptmrun.data.images.augment import moves, warp
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.load import load
from ptmrun.data.images.masks import PixelClasses
from ptmrun.data.sources import IGNORED, coco_masks, maskfolder, palettes, shape_masks
from ptmrun.downstream.segmentation import floors, head, inputs, metrics
from ptmrun.downstream.segmentation.split import MaskedSplit, with_masks
from ptmrun.errors import UserError
from ptmrun.models.modes import eval_mode
from ptmrun.stages.networks import family_of
from ptmrun.storage import tensor_files
from ptmrun.training import loop

COLOURS = [[10, 20, 200], [20, 180, 30], [90, 90, 90]]
QUICK = [
    *CNN,
    "downstream=segmentation",
    "dataset.drawings=60",
    "pretrain.steps=2",
    "pretrain.batch_size=8",
    "pretrain.probes=0",
    "finetune.steps=3",
    "finetune.batch_size=4",
    "finetune.seeds=1",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


def options(root="tiles", **more):
    known = {"root": str(root), "ignore": "auto", "name": "masks", "annotations": None}
    return SimpleNamespace(**(known | more))


def image(path, size=(24, 20), mode="RGB", shade=0):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = (np.arange(size[0] * size[1] * 3).reshape(size[1], size[0], 3) * 7 + 31 * shade) % 256
    Image.fromarray(array.astype(np.uint8)).convert(mode).save(path)


def mask(path, values=(0, 1), size=(24, 20), mode="P", dtype=np.uint8):
    """Columns of the values, equally wide."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values)[np.arange(size[0]) * len(values) // size[0]] * np.ones((size[1], 1), dtype=int)
    made = Image.fromarray(array.astype(dtype))
    if mode == "P":
        made = made.convert("P")
        made.putpalette(bytes(chain(*COLOURS, [0] * 759)))  # all 256, or no more bits than the colours need are saved
    made = made if mode in ("P", None) else made.convert(mode)
    made.save(path)


def folder(count=3, root="tiles", names=("sea", "land", "lake"), split="", values=(0, 1, 2)):
    for i in range(count):
        image(Path(root, split, "images", f"{i}.png"), shade=i)
        mask(Path(root, split, "masks", f"{i}.png"), values)
    if names:
        Path(root, "classes.txt").write_text("\n".join(names))


# --- folders


@pytest.mark.parametrize("layout", ["flat", "splits", "inside"])
def test_masks_of_folders_are_read_with_their_names_and_palette(layout):
    if layout == "flat":
        folder()
    else:
        for split in ("train", "val", "test"):
            folder(split=split)
    if layout == "inside":  # images/train and masks/train
        for split in ("train", "val", "test"):
            for kind in ("images", "masks"):
                Path("tiles", kind).mkdir(exist_ok=True)
                Path("tiles", split, kind).rename(Path("tiles", kind, split))
            Path("tiles", split).rmdir()
    source = maskfolder.read(options())
    assert set(source.parts) == ({"train"} if layout == "flat" else {"train", "val", "test"})
    for part in source.parts.values():
        assert part.masks.classes == ["sea", "land", "lake"]
        assert part.masks.palette == COLOURS
        assert part.masks.mask(0)[0].tolist() == [0] * 8 + [1] * 8 + [2] * 8
        assert part.labels is None
    before = source.fingerprint
    mask(next(Path("tiles").rglob("masks/**/0.png")), (2, 1, 0))
    assert maskfolder.read(options()).fingerprint != before


@pytest.mark.parametrize(
    ("values", "mode", "dtype", "classes", "expected"),
    [
        ((0, 255), "L", np.uint8, ["0", "255"], [0, 1]),  # drawn in black and white
        ((0, 128, 255), "L", np.uint8, ["0", "128", "255"], [0, 1, 2]),
        ((0, 1, 255), "L", np.uint8, ["0", "1"], [0, 1, IGNORED]),
        ((0, 7, 11), "P", np.uint8, ["0", "7", "11"], [0, 1, 2]),
        ((0, 255), "1", np.uint8, ["0", "1"], [0, 1]),
        ((0, 1, 2), "I;16", np.uint16, ["0", "1", "2"], [0, 1, 2]),
        ((0, 2, 1), "RGB", np.uint8, ["0", "1", "2"], [0, 2, 1]),
        ((0, 2, 1), "LA", np.uint8, ["0", "1", "2"], [0, 2, 1]),
    ],
)
def test_values_of_masks_of_all_kinds_become_classes(values, mode, dtype, classes, expected):
    image("tiles/images/a.png")
    mask("tiles/masks/a.png", values, mode=None if mode == "I;16" else mode, dtype=dtype)
    source = maskfolder.read(options())
    known = source.parts["train"].masks
    assert known.classes == classes
    assert [known.mask(0)[0, 24 * i // len(values)] for i in range(len(values))] == expected
    assert any("there is no classes.txt" in note for note in source.notes)


def test_what_has_no_counterpart_is_told_and_a_mask_of_another_size_scaled():
    folder()
    image("tiles/images/alone.png")
    mask("tiles/masks/stray.png")
    mask("tiles/masks/2.png", (0, 1, 2), size=(48, 40))
    image("tiles/images/named.jpg")
    mask("tiles/masks/named_mask.png", (2, 1, 0))
    source = maskfolder.read(options())
    assert "1 images have no mask and are for pretraining alone: images/alone.png" in source.notes[0]
    assert "1 masks have no image and are left out: masks/stray.png" in source.notes[1]
    assert "1 masks are scaled to the size of their image: masks/2.png" in source.notes[2]
    assert source.faults[:2] == ("images/alone.png: has no mask", "masks/stray.png: has no image; left out")
    part = source.parts["train"]
    assert [part.images.label_of(i) for i in range(5)][3:] == ["images/alone.png", "images/named.jpg"]
    assert part.masks.mask(3) is None
    assert part.masks.mask(4)[0, 0] == 2
    truth, there = image_masks.decoded(part.masks, 20)
    assert there.tolist() == [True, True, True, False, True]
    assert (truth[2] == truth[0]).all()
    assert (truth[3] == IGNORED).all()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: None, r"tiles: no such folder"),
        (lambda: Path("tiles").mkdir(), r"tiles: expected the folders images and masks.*it holds nothing"),
        (lambda: image("tiles/images/a.png"), r"expected the folders images and masks.*it holds images"),
        (lambda: (image("tiles/images/a.png"), Path("tiles/masks").mkdir()), r"masks: no images in there"),
        (
            lambda: (folder(), mask("tiles/masks/0.png", (0, 5))),
            r"0.png: the value 5 is beyond the 3 classes of .*dataset.ignore=5",
        ),
        (
            lambda: (folder(), mask("tiles/masks/0.png", (0, 999), mode=None, dtype=np.uint16)),
            r"holds the value 999; classes are",
        ),
        (lambda: (folder(), image("tiles/masks/0.png")), r"0.png: has colours, not classes"),
        (lambda: (folder(), mask("tiles/masks/0.png", size=(24, 24))), r"0.png is 24x24, its image 24x20"),
        (lambda: (folder(), Path("tiles/masks/0.png").write_bytes(b"no")), r"0.png: cannot be decoded"),
        (lambda: (folder(), mask("tiles/masks/0.tif")), r"two masks of one image"),
        (lambda: (folder(1), mask("tiles/masks/0.jpg", mode="L")), r"a format that changes its values"),
        (lambda: (image("tiles/images/a.png"), mask("tiles/masks/b.png")), r"no mask has the name of an image"),
        (lambda: folder(names=("sea",)), r"classes.txt: 1 names"),
        (lambda: folder(names=("sea", "land", "sea")), r"classes.txt: sea stands there twice"),
        (lambda: folder(split="val"), r"no folder train"),
    ],
)
def test_folders_that_cannot_be_used_are_one_line(make, why):
    make()
    with pytest.raises(UserError, match=why):
        maskfolder.read(options())


def test_ignored_values_and_numbered_names():
    folder(names=("0: sea", "1: land"), values=(0, 1, 2))
    with pytest.raises(UserError, match="the value 2 is beyond the 2 classes"):
        maskfolder.read(options())
    source = maskfolder.read(options(ignore=2))
    assert source.parts["train"].masks.classes == ["sea", "land"]
    assert source.parts["train"].masks.mask(0)[0, [0, 8, 16]].tolist() == [0, 1, IGNORED]
    assert any("pixels of the value 2 are in no class" in note for note in source.notes)
    with pytest.raises(UserError, match=r"dataset\.ignore=300"):
        maskfolder.read(options(ignore=300))


# --- COCO's format


def coco(root="coco", annotations=None, count=2, **more):
    for i in range(count):
        image(Path(root, "images", f"{i}.jpg"), size=(24, 20), shade=i)
    square = [2, 2, 12, 2, 12, 10, 2, 10]
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.jpg", "width": 24, "height": 20} for i in range(count)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": annotations or [{"id": 1, "image_id": 10, "category_id": 90, "area": 80, "segmentation": [square]}],
    } | more
    Path(root).mkdir(exist_ok=True)
    Path(root, "instances.json").write_text(json.dumps(content))


def test_outlines_of_coco_are_painted_the_smaller_above():
    runs = {"size": [20, 24], "counts": [0, 40, 440]}  # the first two columns
    from faster_coco_eval.core import mask as library

    packed = library.encode(np.asfortranarray(np.eye(20, 24, dtype=np.uint8)))
    big, small = [0, 0, 20, 0, 20, 20, 0, 20], [4, 4, 10, 4, 10, 10, 4, 10]
    coco(
        annotations=[
            {"id": 1, "image_id": 10, "category_id": 3, "area": 36, "segmentation": [small, [1, 1, 2, 2]]},
            {"id": 2, "image_id": 10, "category_id": 90, "area": 400, "segmentation": [big]},
            {"id": 3, "image_id": 11, "category_id": 3, "area": 40, "segmentation": runs, "iscrowd": 1},
            {
                "id": 4,
                "image_id": 11,
                "category_id": 90,
                "area": 20,
                "segmentation": {**packed, "counts": packed["counts"].decode()},
            },
            {"id": 5, "image_id": 11, "category_id": 90},
        ]
    )
    source = coco_masks.read(options("coco"))
    known = source.parts["train"].masks
    assert known.classes == ["background", "cat", "dog"]
    first, second = known.mask(0), known.mask(1)
    assert (first[5, 5], first[2, 2], first[19, 23]) == (1, 2, 0)
    assert (first[4:10, 4:10] == 1).all()
    np.testing.assert_array_equal(second == 2, np.eye(20, 24, dtype=bool))
    assert (second[1:, 0] == IGNORED).all()  # a crowd
    assert source.faults == (
        "images/0.jpg: annotation 1: polygons of fewer than 3 corners; left out",
        "images/1.jpg: annotation 5: has no outline; left out",
    )


ALONE = {"image_id": 10, "category_id": 3, "segmentation": [[0, 0, 9, 1, 2, 9]]}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"images": []}, "its list of images is empty"),
        ({"annotations": [{"image_id": 10}]}, "no image that is there has an object with a segmentation"),
        ({"annotations": [{**ALONE, "category_id": 4}]}, "no image that is there has an object with a segmentation"),
        ({"images": [{"id": 10, "file_name": "gone.jpg", "width": 2, "height": 2}]}, "no image that is there has"),
        ({"images": [{"id": 10, "file_name": "0.jpg", "width": 48, "height": 40}]}, "0.jpg: is 24x20, in instances.json 48x40"),
    ],
)
def test_coco_files_that_cannot_be_used_are_one_line(more, why):
    coco(**more)
    with pytest.raises(UserError, match=why):
        coco_masks.read(options("coco"))


def test_a_broken_outline_names_its_image_and_a_missing_package_its_extra(monkeypatch):
    coco(annotations=[{"image_id": 10, "category_id": 3, "segmentation": {"size": [20, 24], "counts": [5, 5]}}])
    with pytest.raises(UserError, match=r"images/0.jpg: an object's segmentation is none of COCO's"):
        coco_masks.read(options("coco")).parts["train"].masks.mask(0)
    monkeypatch.setattr(coco_masks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ptmrun\[detection\]'"):
        coco_masks.read(options("coco"))


# --- what becomes of masks


def test_masks_move_with_images_as_those_of_torchvision():
    settings = SimpleNamespace(shift=0.1, rotate=20.0, shear=0.0, scale=0.0, flip=True)
    rows = rng.BatchRandom(0, 3, 0, 4, 4)
    matrices = moves(settings, 1.0, rows)
    numbers = torch.zeros(4, 32, 32, dtype=torch.int64)
    numbers[:, 8:20, 12:28] = 1
    images = numbers[:, None].float()
    moved = PixelClasses(numbers).moved(matrices).numbers
    warped = warp(images, matrices)[:, 0]
    known = moved != IGNORED
    sure = (warped < 0.01) | (warped > 0.99)
    assert (moved[known & sure] == warped[known & sure].round().long()).all()
    assert 0 < (~known).float().mean() < 0.5
    flip = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]])
    theirs = v2.functional.horizontal_flip(tv_tensors.Mask(numbers[:1]))
    assert torch.equal(PixelClasses(numbers[:1]).moved(flip).numbers, torch.as_tensor(theirs))
    shift = torch.tensor([[[1.0, 0, 0.25], [0, 1, 0]]])  # four pixels to the left
    theirs = v2.functional.affine(tv_tensors.Mask(numbers[:1]), 0.0, [-4, 0], 1.0, [0.0, 0.0], fill=IGNORED)
    assert torch.equal(PixelClasses(numbers[:1]).moved(shift).numbers, torch.as_tensor(theirs))


def drawn(count=12):
    read = shape_masks.read(SimpleNamespace(drawings=count, drawing_seed=0))
    settings = parsing.plain(compose(["dataset=shape_masks"]))["dataset"]
    settings = SimpleNamespace(**settings | {"val_fraction": 0.2})
    return load(lambda _: read, settings, 0, lambda *_: None)


def masked(count=12):
    data = drawn(count)
    return with_masks((data.train, data.val, data.test), None, [])


def test_batches_have_masks_that_lie_on_their_images():
    train, _, _ = masked()
    data = drawn()
    settings = SimpleNamespace(shift=0.0, rotate=180.0, shear=0.0, scale=0.0, flip=True)
    batches = Batches(train, data.processor(torch.device("cpu")), settings, 1.0, 4, 2, 0, "test")
    micros = next(batches.iterate(0, 1))
    ground = torch.cat([m["inputs"].mean(1)[m["labels"].numbers == 0] for m in micros])
    figure = torch.cat([m["inputs"].mean(1)[(m["labels"].numbers > 0) & (m["labels"].numbers != IGNORED)] for m in micros])
    assert (ground > 0).float().mean() > 0.9  # the ground is light
    assert figure.mean() < ground.mean() - 1
    again = next(Batches(train, batches.inputs, settings, 1.0, 4, 1, 0, "test").iterate(0, 1))[0]
    assert torch.equal(again["labels"].numbers, torch.cat([m["labels"].numbers for m in micros]))


def test_images_without_a_mask_are_left_out_and_one_class_alone_is_refused():
    for i in range(30):
        image(f"tiles/images/{i}.png", size=(20, 20), shade=i)
        if i < 12 and i % 4:
            mask(f"tiles/masks/{i}.png", (0, 1) if i % 4 == 1 else (255, 255) if i == 2 else (1, 0), size=(20, 20))
    Path("tiles/classes.txt").write_text("sea\nland\nlake")
    settings = SimpleNamespace(**parsing.plain(compose(["dataset=masks", "dataset.root=tiles"]))["dataset"])
    data = load(lambda _: maskfolder.read(options()), settings, 0, lambda *_: None)
    notes: list[str] = []
    splits = with_masks((data.train, data.val, data.test), None, notes)
    assert sum(map(len, splits)) == 8  # the other 21 are trained on alone
    assert len(data.train) == 27 - len(data.test) - len(data.val) + 3
    assert min(map(len, splits)) > 0
    settings.limit = 8
    assert len(load(lambda _: maskfolder.read(options()), settings, 0, lambda *_: None).train) == 8
    settings.limit = None
    assert any("have no pixel of any class and are left out: images/2.png" in note for note in notes)
    assert any(note.startswith("pixels of the training masks: ") and "lake 0 %" in note for note in notes)
    for i in range(12):
        mask(f"tiles/masks/{i}.png", (1, 1), size=(20, 20))
    Path("tiles/masks/2.png").unlink()
    data = load(lambda _: maskfolder.read(options()), settings, 0, lambda *_: None)
    with pytest.raises(UserError, match="at least two classes; all pixels of the training masks are land"):
        with_masks((data.train, data.val, data.test), None, [])


# --- scores


def split_of(truth, classes=3):
    count, side = truth.shape[0], truth.shape[-1]
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    names = [str(i) for i in range(classes)]
    known = {"truth": truth, "classes": names, "palette": palettes.usual(classes)}
    return MaskedSplit(pixels, None, torch.arange(count), None, **known)


def test_scores_are_those_of_scikit_learn_and_of_a_reference():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (70, 9, 9), generator=generator).to(torch.uint8)
    truth[torch.rand(truth.shape, generator=generator) < 0.1] = IGNORED
    guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth % 4, 1).to(torch.uint8)
    split, predictions = split_of(truth, 5), {"masks": guess}
    found = metrics.metrics(predictions, split, split.classes, 10)
    pairs = [x[truth != IGNORED].numpy() for x in (truth, guess)]
    for key, theirs in (("iou", jaccard_score), ("dice", f1_score)):
        each = [found["per_class"][str(c)][key] for c in range(4)]
        np.testing.assert_allclose(each, theirs(*pairs, average=None), rtol=1e-12)
    assert found["absent"] == ["4"]
    assert found["per_class"]["4"]["iou"] is None
    t, g = truth.numpy().astype(int), guess.numpy()
    counts = t != IGNORED
    expected = [((t == c) & (g == c)).sum() / (((t == c) | (g == c)) & counts).sum() for c in range(4)]
    assert math.isclose(metrics.score(predictions, split), np.mean(expected), rel_tol=1e-12)
    assert math.isclose(found["miou"], np.mean(expected), rel_tol=1e-12)
    assert math.isclose(found["pixel_accuracy"], (t == g)[counts].mean(), rel_tol=1e-12)
    one = 3
    own = [((t[one] == c) & (g[one] == c)).sum() / (((t[one] == c) | (g[one] == c)) & counts[one]).sum() for c in range(4)]
    assert math.isclose(metrics.per_sample_scores(predictions, split)[one], np.mean(own), rel_tol=1e-12)


def test_edges_may_be_off_by_a_little():
    truth = torch.zeros(1, 64, 64, dtype=torch.uint8)
    truth[:, 20:40, 20:40] = 1
    split = split_of(truth, 2)
    assert metrics.boundary({"masks": truth}, split).tolist() == [1.0, 1.0]
    assert metrics.boundary({"masks": truth.roll(1, 2)}, split).tolist() == [1.0, 1.0]
    assert metrics.boundary({"masks": truth.roll(12, 2)}, split).max() < 0.7
    assert metrics.boundary({"masks": torch.zeros_like(truth)}, split).tolist() == [0.0, 0.0]


def test_predictions_of_other_data_are_not_valid():
    split = split_of(torch.zeros(2, 8, 8, dtype=torch.uint8))
    good = torch.ones(2, 8, 8, dtype=torch.uint8)
    assert metrics.valid({"masks": good}, split, split.classes)
    for bad in (good[:1], good.long(), good + 4, good[:, :4]):
        assert not metrics.valid({"masks": bad}, split, split.classes)
    votes = [{"masks": good * i, "confidence": torch.full((2,), 0.5)} for i in (2, 1, 2)]
    assert (metrics.averaged(votes)["masks"] == 2).all()


# --- heads


def segmenter(kind="fcn", model="cnn", side=48, classes=3, **more):
    cfg = compose([f"model={model}", "downstream=segmentation", *(f"model.{k}={v}" for k, v in more.items())])
    family, spec = family_of(cfg), ImageSpec(side, 3)
    cfg = parsing.replace(cfg, **{f"model__{k}": v for k, v in family.resolve(cfg.model, spec)[0].items()})
    rng.seed_everything(0, "test")
    return head.Segmenter(family.build(cfg.model, spec, "eager"), classes, side, kind, 0.0)


@pytest.mark.parametrize("model", ["alexnet", "cnn", "convnext", "mobilenet", "resnet", "swin", "vgg", "vit"])
def test_every_encoder_has_stages_of_which_the_last_gives_the_features(model):
    built = segmenter("linear", model)
    x = torch.randn(2, 3, 48, 48)
    with eval_mode(built), torch.no_grad():
        maps = built.encoder.stage_maps(x)
        sides = [m.shape[-1] for m in maps]
        assert sides == sorted(set(sides), reverse=True)
        if model != "vit":
            torch.testing.assert_close(maps[-1], built.encoder.feature_map(x))
            torch.testing.assert_close(built.encoder.pooled(maps[-1]), built.encoder.features(x))
    loss, _ = built({"inputs": x, "labels": PixelClasses(torch.randint(0, 3, (2, 48, 48)))})
    loss.total.backward()
    assert not [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", ["linear", "fcn", "deeplab"])
def test_the_linear_layer_may_come_before_scaling(kind):
    built = segmenter(kind, width=8, hidden=16)
    x = torch.randn(2, 3, 48, 48)
    with eval_mode(built), torch.no_grad():
        features = head.scaled(built.head.decoder(built.levels(built.encoder, x)), 48)
        whole = features if built.head.pixels is None else torch.cat([features, built.head.pixels(x)], 1)
        expected = torch.nn.functional.conv2d(whole, built.head.weight, built.head.bias)
        torch.testing.assert_close(built.logits(x), expected, atol=1e-5, rtol=1e-4)
        uniform = head.Segmenter(built.encoder, 3, 48, kind, 0.0)
        uniform.head.weight.zero_()
        batch = {"inputs": x, "labels": PixelClasses(torch.randint(0, 3, (2, 48, 48)))}
        loss, _ = uniform(batch)
        assert math.isclose(float(loss.total) / float(loss.n), uniform.initial_loss(batch), rel_tol=1e-4)


def test_ignored_pixels_count_nowhere_and_classes_have_weights():
    built = segmenter(width=8, hidden=16)
    x, truth = torch.randn(2, 3, 48, 48), torch.randint(0, 3, (2, 48, 48))
    truth[:, :10] = IGNORED
    batch = {"inputs": x, "labels": PixelClasses(truth)}
    with eval_mode(built), torch.no_grad():
        loss, shown = built(batch)
        nll = -built.logits(x).log_softmax(1)
        known = truth != IGNORED
        each = nll.gather(1, torch.where(known, truth, 0)[:, None])[:, 0]
        assert float(loss.n) == known.sum()
        torch.testing.assert_close(loss.total, each[known].sum(), rtol=1e-4, atol=1e-3)
        built.balance_classes(torch.tensor([0] * 6 + [1] * 3))
        assert built.weights.tolist() == [0.75, 1.5, 4.5]
        loss, _ = built(batch)
        weight = built.weights[truth[known]]
        torch.testing.assert_close(loss.total / loss.n, (weight * each[known]).sum() / weight.sum(), rtol=1e-4, atol=1e-4)
        blank = {"inputs": x, "labels": PixelClasses(torch.full_like(truth, IGNORED))}
        loss, shown = built(blank)
        assert float(loss.total / loss.n) == 0
        assert float(shown["pixel_accuracy"].total) == 0


def test_one_image_is_learned_by_heart():
    train, _, _ = masked()
    one = train.subset(torch.tensor([0]))
    built = segmenter(classes=5, width=16, hidden=16).train()
    x = next(one.all()).float() / 128 - 1
    batch = {"inputs": x.expand(2, -1, -1, -1), "labels": PixelClasses(one.answers(torch.tensor([0])).numbers.expand(2, -1, -1))}
    optimizer = torch.optim.AdamW(built.parameters(), lr=5e-3)
    for _ in range(60):
        loss, _ = built(batch)
        (loss.total / loss.n).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert metrics.score(built.eval().predict([x]), one) > 0.95


def test_levels_are_neither_too_fine_nor_too_coarse():
    assert head.leading([128, 64, 7], 128) == 1  # the next is too coarse
    assert head.leading([64, 32, 16, 8], 128) == 1
    assert head.leading([28, 14, 7], 28) == 0
    assert head.leading([14], 224) == 0


# --- floors


def test_floors_tell_colours_apart_and_not_shapes():
    train, _, test = masked(40)
    data = SimpleNamespace(train=train, test=test)
    score = {kind: metrics.score(floors.baseline_predictions(kind, data, train, None), test) for kind in ("chance", "raw")}
    assert 0.1 < score["chance"] < score["raw"] < 0.5
    seen = []

    def features(kind, split, look):
        seen.append(kind)
        return look(built.encoder, next(split.all(len(split))).float() / 128 - 1).numpy()

    built = segmenter(width=8, hidden=16).eval()
    with torch.no_grad():
        guess = floors.baseline_predictions("random_frozen", data, train, features)
    assert metrics.valid(guess, test, test.classes)
    assert set(seen) == {"random_frozen"}
    assert metrics.score(guess, test) > score["chance"]


# --- predictions


def test_long_pictures_are_covered_by_squares_and_put_together():
    assert inputs.boxes(10, 10) == [(0, 0, 10, 10)]
    assert inputs.boxes(25, 10) == [(0, 0, 10, 10), (8, 0, 18, 10), (15, 0, 25, 10)]
    assert inputs.boxes(4, 7) == [(0, 0, 4, 4), (0, 3, 4, 7)]
    for size in ((25, 10), (10, 25), (10, 10)):
        picture = Image.new("RGB", size)
        places = inputs.boxes(*size)
        whole = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0])
        squares = torch.stack([torch.from_numpy(whole[b[1] : b[3], b[0] : b[2]].copy()) for b in places])
        np.testing.assert_array_equal(inputs.joined(squares, inputs.Opened(picture, squares, places)), whole)


# --- runs


def test_a_run_segments_what_is_drawn_and_writes_masks(ptmrun, monkeypatch):
    monkeypatch.setattr(floors, "SEEN", 500)
    code, out, _ = ptmrun(*QUICK)
    assert code == 0
    results = json.loads(latest().joinpath("results.json").read_text())
    assert results["metric"] == "mean IoU"
    assert set(results["baselines"]) == {"chance", "raw", "random_frozen", "frozen", "scratch"}
    assert results["metrics"]["per_class"].keys() == set(shape_masks.CLASSES)
    assert latest().joinpath("figures", "segmentation.png").exists()
    assert "pixels of the training masks: background" in out
    image("wide.png", size=(80, 40))
    image("gray.png", size=(30, 31), mode="L")
    image("clear.png", size=(30, 31), mode="RGBA")
    image("print.jpg", size=(64, 64), mode="CMYK")
    Path("broken.png").write_bytes(b"no")
    names = ["wide.png", "gray.png", "clear.png", "print.jpg"]
    code, out, err = ptmrun("predict", latest(), *names, "broken.png", "pictures=drawn")
    assert code == 1
    assert "broken.png\tis no image" in out
    for name in names:
        with Image.open(name) as given, Image.open(f"drawn/{Path(name).stem}_mask.png") as made:
            assert made.mode == "P"
            assert made.size == given.size
            assert made.getpalette()[:15] == list(chain(*palettes.usual(5)))
        assert Path(f"drawn/{Path(name).stem}_overlay.png").exists()
    code, _, err = ptmrun("predict", latest(), "wide.png", "pictures=drawn")
    assert (code, "is there already" in err) == (2, True)
    code, out, _ = ptmrun("predict", latest(), "wide.png", "--json")
    row = json.loads(out)
    assert math.isclose(sum(row["shares"].values()), 1)
    rows = ptmrun_package.load(str(latest())).predict(["wide.png"])
    assert rows[0]["pictures"]["mask"].size == (80, 40)
    code, out, err = ptmrun("export", latest(), "exported")
    assert code == 0, err
    assert "the encoder, and its head apart" in out
    tensors = tensor_files.load(Path("exported/head.safetensors"))[0]
    assert tensors["weight"].shape[0] == len(tensors["bias"]) == 5
    assert any(name.startswith("decoder.") for name in tensors)


def test_an_interrupted_fine_tuning_goes_on_exactly(ptmrun, monkeypatch):
    words = [*QUICK, "stage=finetune", "finetune.checkpoint_every=0", "finetune.steps=4", "finetune.class_weights=balanced"]
    code, out, _ = ptmrun(*words)
    assert code == 0
    assert "finetune.class_weights=balanced: background 0." in out
    whole, real = latest(), loop.fit

    def fit(model, batches, plan):
        steps = iter(range(100))
        return real(model, batches, dataclasses.replace(plan, stop=lambda: 15 if next(steps) == 1 else None))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", fit)
        assert ptmrun(*words)[0] == 128 + 15
    parts = latest()
    assert parts != whole
    assert ptmrun("resume", parts)[0] == 0
    first, second = (tensor_files.load(run / "checkpoints/finetuned/all-tuned-0.safetensors")[0] for run in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_choices_that_belong_together_are_taken_together():
    assert compose(["model=cnn", "downstream=segmentation"]).dataset.name == "shape_masks"
    assert compose(["dataset=masks"]).downstream.head == "fcn"
    assert compose(["dataset=masks", "finetune=linear"]).downstream.head == "linear"
    assert compose(["dataset=masks", "finetune=linear", "downstream.head=deeplab"]).downstream.head == "deeplab"
    with pytest.raises(UserError, match=r"the data has no masks.*dataset=coco_masks, masks, shape_masks"):
        compose(["downstream=segmentation", "dataset=digits"])
    with pytest.raises(UserError, match="the problem needs images"):
        compose(["downstream=segmentation", "model=imagegpt"])
    with pytest.raises(UserError, match=r"finetune\.mixup=0\.2: mixes the classes of whole images"):
        compose(["downstream=segmentation", "finetune.mixup=0.2"])


def test_a_problem_prevails_over_the_model_but_not_over_what_is_given():
    assert compose(["model=cnn"]).pretrain.steps == 600
    cfg = compose(["model=cnn", "downstream=segmentation"])
    assert (cfg.pretrain.steps, cfg.pretrain.batch_size, cfg.finetune.lr) == (100, 128, 1e-2)
    assert compose(["model=resnet", "downstream=segmentation"]).finetune.lr == 1e-3
    assert compose(["model=cnn", "downstream=segmentation", "finetune=lora"]).finetune.lr == 5e-3
    assert compose(["model=resnet", "downstream=detection"]).pretrain.steps == 40
    assert compose(["model=cnn", "downstream=segmentation", "pretrain.steps=9"]).pretrain.steps == 9
    assert compose(["model=cnn", "downstream=segmentation", "pretrain.epochs=2"]).pretrain.steps is None
    assert compose(["experiment=bluemarble"]).pretrain.steps == 400


def test_a_choice_of_the_users_own_prevails_over_the_problem(monkeypatch):
    Path("own/model").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [cnn, _self_]\npretrain: {steps: 77}\n"
    Path("own/model/mine.yaml").write_text(text)
    monkeypatch.setenv(choices.CONFIG_DIR, "")
    choices.add_folder(Path("own"))
    try:
        assert compose(["model=mine", "downstream=segmentation"]).pretrain.steps == 77
    finally:
        choices.files.cache_clear()
