"""Boxes: files of all formats and what is wrong with them, squares of large images, the detector against torchvision's, scores
against pycocotools', runs."""

import contextlib
import dataclasses
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CNN, latest
from PIL import Image, ImageDraw
from torchvision import tv_tensors
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.transforms import v2

import ptmrun as ptmrun_package
from ptmrun import rng
from ptmrun.batch import NO_BOX, Boxes, ImageSpec
from ptmrun.config.schema import Augment
from ptmrun.data.images import load
from ptmrun.data.images.augment import geometry, warp
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.sources import Scene, Window, boxes, scenes
from ptmrun.data.sources.boxes import tiles, voc
from ptmrun.downstream import detection
from ptmrun.downstream.detection import average_precision as ap
from ptmrun.downstream.detection import detectors, floors, head, inputs, merge, metrics, two_stages, written
from ptmrun.downstream.detection.split import BoxedSplit, in_window, padded, with_boxes
from ptmrun.errors import UserError
from ptmrun.models import cnn, resnet
from ptmrun.reports import figures
from ptmrun.training import loop

OPTIONS = {
    "name": "boxes",
    "format": "auto",
    "annotations": None,
    "one_class": False,
    "tile": "auto",
    "overlap": 0.2,
    "max_faulty": 0.6,
    "image_size": "auto",
}
BOX = [10, 12, 30, 20]  # left, top, width, height


def photo(path, size=(100, 80), box=BOX, shade=0):
    """A picture with a dark rectangle."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (200, 200, 150 + shade))
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle([left, top, left + width - 1, top + height - 1], fill=(40, 40, 40))
    image.save(path)
    return path


def coco(root="photos", count=4, file="instances.json", **changes):
    """Pictures and a JSON of one box each; `changes` take the place of its lists."""
    root = Path(root)
    for i in range(count):
        photo(root / "images" / f"{i}.png", shade=i)
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(count)],
        "annotations": [
            {"id": i + 1, "image_id": i + 1, "category_id": 1 + 6 * (i % 2), "bbox": list(BOX), "iscrowd": 0}
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    for key, change in changes.items():
        content[key] = change(content[key]) if callable(change) else change
    (root / file).write_text(json.dumps(content))
    return content


def read(root="photos", **options):
    return boxes.read(SimpleNamespace(root=str(root), **{**OPTIONS, **options}))


def note(source, words):
    """The one note, or fault, with these words."""
    [line] = [line for line in (*source.notes, *source.faults) if words in line]
    return line


# formats


def test_coco():
    coco()
    source = read()
    assert source.classes == ["cat", "dog"]
    shown = source.parts["train"].shown
    assert [scene.classes.tolist() for scene in shown.scenes] == [[0], [1], [0], [1]]
    assert shown.scenes[0].corners.tolist() == [[10, 12, 40, 32]]
    assert shown.numbers == [1, 7]
    assert "category ids have gaps (1, 7)" in note(source, "gaps")
    assert source.notes[0] == "COCO JSON: 4 boxes in 4 images"
    assert source.side == 128
    assert not source.faults


def test_pascal_voc_counts_from_one_and_has_lists_of_splits():
    names = ["a", "b", "c", "d"]
    for i, name in enumerate(names):
        photo(f"voc/JPEGImages/{name}.png")
        left = 1 if name == "a" else 11
        text = f"<annotation><filename>{name}.png</filename><size><width>100</width><height>80</height></size><object>"
        text += f"<name>cat</name><difficult>{i % 2}</difficult><bndbox><xmin>{left}</xmin><ymin>13</ymin><xmax>40</xmax>"
        place = Path(f"voc/Annotations/{name}.xml")
        place.parent.mkdir(exist_ok=True)
        place.write_text(text + "<ymax>32</ymax></bndbox></object></annotation>")
    folder = Path("voc/ImageSets/Main")
    folder.mkdir(parents=True)
    for split, members in (("train", "a b"), ("val", "c"), ("test", "d"), ("trainval", "a b c")):
        (folder / f"{split}.txt").write_text("\n".join(members.split()))
    source = read("voc")
    assert {name: len(part.images) for name, part in source.parts.items()} == {"train": 2, "val": 1, "test": 1}
    assert [scene.corners.tolist() for scene in source.parts["train"].shown.scenes] == [[[0, 12, 40, 32]], [[10, 12, 40, 32]]]
    assert note(source, "difficult").startswith("2 difficult boxes are ignored")
    assert source.parts["test"].shown.scenes[0].ignored.tolist() == [True]


def test_yolo_with_names_and_splits():
    for split in ("train", "valid"):
        for i in range(2):
            photo(f"yolo/{split}/images/{split}{i}.png")
            label = Path(f"yolo/{split}/labels/{split}{i}.txt")
            label.parent.mkdir(exist_ok=True)
            label.write_text("1 0.25 0.275 0.3 0.25\n" if i == 0 else "")
    photo("yolo/train/images/none.png")
    Path("yolo/train/labels/lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    Path("yolo/data.yaml").write_text("train: ../train/images\nnames:\n  0: cat\n  1: dog\n")
    source = read("yolo")
    first, second = source.parts["train"].shown.scenes
    np.testing.assert_allclose(first.corners, [[10, 12, 40, 32]], atol=1e-4)
    assert len(second.classes) == 0
    assert source.classes == ["dog"]
    assert source.parts["val"].shown.scenes[0].classes.tolist() == [0]
    assert note(source, "labels have no image") == "1 labels have no image and are left out (train/labels/lost.txt)"
    assert "train/images/none.png: has no label; left out" in source.faults
    assert note(source, "categories have no box") == "1 categories have no box and are left out (cat)"
    assert note(source, "images have no box").startswith("2 images")


def test_yolo_in_pixels_is_refused():
    photo("yolo/images/a.png")
    Path("yolo/labels").mkdir()
    Path("yolo/labels/a.txt").write_text("0 25 22 30 20\n")
    with pytest.raises(UserError, match="shares of the image's sides, 0 to 1, not pixels"):
        read("yolo")


def test_objects_of_the_datasets_library():
    for split in ("train", "test"):
        photo(f"table/{split}/a.png")
        row = {"file_name": "a.png", "objects": {"bbox": [BOX], "categories": ["cat"]}}
        Path(f"table/{split}/metadata.jsonl").write_text(json.dumps(row) + "\n")
    source = read("table")
    assert source.parts["test"].shown.scenes[0].corners.tolist() == [[10, 12, 40, 32]]
    assert source.classes == ["cat"]


# what is wrong with them


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; expected COCO's images, annotations, categories"),
        ("{}", "is empty"),
        ("[]", "is empty"),
        ('{"images": [], "annotations": [], "categories": []}', "its list of images is empty"),
        ('{"images": [{"id": 1, "file_name": "0.png"}], "categories": [{"id": 1, "name": "x"}]}', "has no list of annotations"),
        ('{"images": [', "is no JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "expected an id and a file_name"),
    ],
)
def test_a_json_that_is_none(text, words):
    photo("photos/0.png")
    Path("photos/instances.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read()
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def faulty(annotations):
    changes = [
        {"bbox": [10, 10, 0, 20]},
        {"bbox": [200, 10, 20, 20]},
        {"bbox": [90, 70, 30, 30]},
        {"image_id": 99},
        {"category_id": 3},
        {"bbox": [1, 2, 3]},
        {"iscrowd": 1, "bbox": [60, 40, 30, 30]},
        {},
    ]
    return annotations + [{**annotations[0], "id": 100 + i, **change} for i, change in enumerate(changes)]


def test_boxes_that_are_wrong_are_left_out_and_listed_by_file():
    coco(annotations=faulty)
    source = read()
    scene = source.parts["train"].shown.scenes[0]
    assert scene.corners.tolist() == [[10, 12, 40, 32], [90, 70, 100, 80], [60, 40, 90, 70]]
    assert scene.ignored.tolist() == [False, False, True]
    for fault in (
        "images/0.png: annotation 100: has no area (10, 10, 10, 30); left out",
        "images/0.png: annotation 101: is outside of the image of 100x80 (200, 10, 220, 30); left out",
        "images/0.png: annotation 102: reaches beyond the image of 100x80 (90, 70, 120, 100); cut there",
        "instances.json: annotation 103: no image has its image_id 99; left out",
        "images/0.png: annotation 104: no category has its category_id 3; left out",
        "images/0.png: annotation 105: bbox is not four numbers; left out",
        "images/0.png: annotation 107: stands there twice; left out once",
    ):
        assert fault in source.faults
    assert "1 crowd boxes (iscrowd) of the train split are ignored" in note(source, "crowd")
    with pytest.raises(UserError, match=r"5 of 1\d boxes are wrong, more than dataset.max_faulty=0.05; the first: images/0.png"):
        read(max_faulty=0.05)


def test_images_that_are_listed_twice_absent_or_in_no_json():
    coco(images=lambda images: [*images, {**images[0], "id": 50}, {"id": 51, "file_name": "gone.png"}])
    photo("photos/images/more.png")
    source = read()
    assert len(source.parts["train"].images) == 4
    assert "1 images are listed twice in instances.json" in note(source, "listed twice in")
    assert note(source, "are not there") == "1 images of instances.json are not there and left out (gone.png)"
    assert "images/more.png: is in no JSON; left out" in source.faults


def test_sizes_that_differ():
    def change(images):
        return [{**images[0], "width": 200, "height": 160}, {**images[1], "width": 80, "height": 300}, *images[2:]]

    coco(images=change)
    source = read()
    first, *others = source.parts["train"].shown.scenes
    assert first.corners.tolist() == [[5, 6, 20, 16]]
    assert len(others) == 2
    assert "images/0.png: is 100x80, its boxes are for 200x160; scaled" in source.faults
    assert "images/1.png is 100x80, its boxes are for 80x300; left out" in source.faults
    with pytest.raises(UserError, match="1 of 4 images have another shape than their boxes are for"):
        read(max_faulty=0.1)


def test_boxes_of_a_turned_picture_are_for_its_pixels_as_their_size_says():
    coco(count=2, images=lambda images: [images[0], {**images[1], "width": 80, "height": 100}])
    for name in ("0", "1"):
        image = Image.open(f"photos/images/{name}.png")
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(f"photos/images/{name}.png", exif=exif)
    part = read().parts["train"]
    stored, upright = part.images.picture(0), part.images.picture(1)
    assert (part.shown.scenes[0].width, part.shown.scenes[1].width) == (100, 80)
    assert np.asarray(stored)[20, 20].tolist() == [40, 40, 40]
    assert np.asarray(upright)[20, 60].tolist() == [40, 40, 40]
    assert not upright.getexif()


def test_categories_that_clash_and_files_that_may_be_either():
    coco()
    coco(file="more.json")
    Path("photos/instances.json").rename("photos/some.json")
    with pytest.raises(UserError, match=r"are both the train split; name one: dataset\.annotations=FILE"):
        read()
    assert len(read(annotations="more.json").parts["train"].images) == 4
    Path("photos/some.json").unlink()
    coco(file="more.json", categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}])
    with pytest.raises(UserError, match="id 1 is cat and dog"):
        read()


def test_no_boxes_at_all():
    photo("photos/a.png")
    with pytest.raises(UserError, match=r"no boxes; expected a COCO \.json"):
        read()
    coco(annotations=[])
    with pytest.raises(UserError, match="its images have no box"):
        read()
    with pytest.raises(UserError, match="no such folder"):
        read("nowhere")


# squares


def test_squares_cover_an_image_and_share_what_is_asked():
    windows = tiles.windows_of(3, 1000, 700, 300, 0.2)
    seen = np.zeros((700, 1000), dtype=bool)
    for window in windows:
        assert window.scene == 3
        assert 0 <= window.left <= 700
        assert 0 <= window.top <= 400
        seen[window.top : window.top + 300, window.left : window.left + 300] = True
    assert seen.all()
    lefts = sorted({w.left for w in windows})
    assert max(np.diff(lefts)) <= 240
    assert tiles.windows_of(0, 320, 200, 300, 0.2) == [Window(0, 0, 0, 320)]
    assert tiles.windows_of(0, 1000, 700, None, 0.2) == [Window(0, 0, 0, 1000)]


def test_squares_of_one_image_stay_on_one_side():
    def many(images):
        return [{**image, "width": 400, "height": 300} for image in images]

    coco(count=5, images=many)
    for i in range(5):
        photo(f"photos/images/{i}.png", (400, 300), shade=i)
    options = {
        **OPTIONS,
        "root": "photos",
        "tile": 100,
        "image_size": 64,
        "cache_gb": 1,
        "max_unreadable": 0,
        "normalise": "data",
    }
    options |= {"folds": None, "limit": None, "test_limit": None, "test_fraction": 0.2, "val_fraction": 0.2, "split_seed": 0}
    data = load.load(boxes.read, SimpleNamespace(**options), 0, lambda *_: None)
    sides = [{split.shown.windows[r].scene for r in split.rows.tolist()} for split in (data.train, data.val, data.test)]
    assert [len(side) for side in sides] == [3, 1, 1]
    assert len(set.union(*sides)) == 5
    assert len(data.train) == 3 * 20
    train, _, test = with_boxes((data.train, data.val, data.test), None, [])
    one = next(i for i in range(len(train)) if len(train.boxes(i)[1]))
    corners = train.boxes(one)[0] * (100 / 64)
    np.testing.assert_allclose(corners, [[10, 12, 40, 32]], atol=0.01)
    every = [(c, np.ones(len(k), np.float32), k) for c, k, _ in map(test.boxes, range(len(test)))]
    found = head.packed([tuple(map(torch.from_numpy, one)) for one in every])
    [(scene, merged, truth)] = merge.of_scenes(found, test)
    np.testing.assert_allclose(merged.corners, scene.corners, atol=0.01)
    assert not truth.ignored.any()
    assert metrics.score(found, test) == 1.0


def test_boxes_in_a_window():
    scene = Scene(
        "",
        200,
        200,
        np.array([[10, 10, 30, 30], [90, 40, 110, 60], [150, 150, 160, 160]], np.float32),
        np.arange(3),
        np.zeros(3, bool),
    )
    corners, classes, ignored = in_window(scene, Window(0, 0, 0, 100), 50)
    assert corners.tolist() == [[5, 5, 15, 15], [45, 20, 50, 30]]
    assert classes.tolist() == [0, 1]
    assert ignored.tolist() == [False, True]  # half of it is seen


def test_what_two_squares_find_is_merged():
    boxes_ = torch.tensor([[10.0, 10, 50, 50], [11, 10, 50, 51], [10, 10, 30, 50], [100, 100, 120, 120]])
    scores, classes = torch.tensor([0.9, 0.8, 0.95, 0.5]), torch.tensor([1, 1, 1, 1])
    found = merge.merged(boxes_, scores, classes, torch.tensor([False, False, True, False]))
    np.testing.assert_allclose(found.scores, [0.9, 0.5])
    other = merge.merged(boxes_, scores, torch.tensor([1, 1, 0, 1]), torch.tensor([False, False, True, False]))
    np.testing.assert_allclose(other.scores, [0.95, 0.9, 0.5])


def peak() -> int:
    """Megabytes that this process has used at most since the last `reset`."""
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_an_image_of_20_megapixels_is_cut_without_a_memory_peak():
    Path("photos").mkdir()
    Image.linear_gradient("L").resize((5000, 4000)).convert("RGB").save("photos/large.jpg")
    content = {
        "images": [{"id": 1, "file_name": "large.jpg", "width": 5000, "height": 4000}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": [40 * i, 30 * i, 60, 60]} for i in range(100)],
        "categories": [{"id": 1, "name": "thing"}],
    }
    Path("photos/instances.json").write_text(json.dumps(content))
    source = read()
    part = source.parts["train"]
    assert "cut into squares of this side" in note(source, "dataset.tile=")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the peak cannot be set back")
    before = peak()
    for i in range(len(part.images)):
        assert part.images.picture(i).size == (part.shown.tile,) * 2
    assert peak() - before < 200  # the picture has 60, and is copied once
    part.images.last = None
    processor = ImageProcessor(torch.zeros(3), torch.ones(3), torch.device("cpu"), source.side)
    setup = SimpleNamespace(processor=processor, facts={"tile": part.shown.tile, "overlap": 0.2, "categories": [1]})
    [opened] = inputs.opened(["photos/large.jpg"], setup)
    assert peak() - before < 250
    assert len(opened.pixels) == len(part.images)
    split = inputs.unlabelled([opened, opened], setup)
    assert len(split) == 2 * len(part.images)
    assert {w.scene for w in split.windows} == {0, 1}


# boxes that move


def blank():
    """A split of one image of 128 pixels."""
    pixels = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    return BoxedSplit(pixels=pixels, decoder=None, rows=torch.arange(1), labels=None, each=[])


def test_boxes_move_with_their_images_as_torchvision_moves_them():
    options = Augment(shift=0.1, rotate=20.0, scale=0.2, shear=10.0, flip=True)
    rows = rng.BatchRandom(0, 0, 0, 6, 6)
    matrices = geometry(options, 1.0, rows, "augment")
    corners = torch.tensor([[[20.0, 30, 50, 44], [60, 60, 90, 100]]]).expand(6, -1, -1)
    answers = Boxes(corners, torch.zeros(6, 2, dtype=torch.long), torch.zeros(6, 2, dtype=torch.bool))
    split = blank()
    moved = split.moved(answers, matrices)
    images = torch.zeros(6, 1, 128, 128)
    images[:, :, 30:44, 20:50] = 1
    there = warp(images, matrices)
    for i in range(6):
        ys, xs = torch.nonzero(there[i, 0] > 0.5, as_tuple=True)
        seen = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        assert (seen - moved.corners[i, 0]).abs().max() < 2.0
        mirrored = geometry(Augment(shift=0.0, rotate=0.0, scale=0.0, shear=0.0, flip=True), 1.0, rows, "augment")[i]
        if mirrored[0, 0] < 0:
            alone = split.moved(answers, mirrored.expand(6, 2, 3)).corners[0]
            boxes_ = tv_tensors.BoundingBoxes(corners[0], format="XYXY", canvas_size=(128, 128))
            assert torch.allclose(alone, v2.functional.horizontal_flip(boxes_).as_subclass(torch.Tensor), atol=1e-3)
    # a rotation alone, as torchvision turns corners about the centre
    angle = torch.tensor(0.3)
    turn = torch.tensor([[[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]]]).expand(6, 2, 3)
    ours = split.moved(answers, turn).corners[0]
    boxes_ = tv_tensors.BoundingBoxes(corners[0], format="XYXY", canvas_size=(128, 128))
    theirs = v2.functional.affine(boxes_, float(-torch.rad2deg(angle)), [0, 0], 1.0, [0, 0])
    assert torch.allclose(ours, v2.functional.clamp_bounding_boxes(theirs).as_subclass(torch.Tensor), atol=0.02)


def test_a_box_that_leaves_the_image_is_gone_and_one_that_half_does_is_ignored():
    shift = torch.tensor([[[1.0, 0, 1.0], [0, 1.0, 0]]])  # half a side to the left
    answers = padded(
        [(np.array([[10, 10, 40, 40], [54, 10, 84, 40], [90, 10, 120, 40]], np.float32), np.arange(3), np.zeros(3, bool))]
    )
    split = blank()
    moved = split.moved(answers, shift)
    assert moved.classes.tolist() == [[NO_BOX, 1, 2]]
    assert moved.ignored.tolist() == [[True, False, False]] or moved.ignored[0, 1:].tolist() == [False, False]
    assert moved.corners[0, 1].tolist() == pytest.approx([0, 10, 20, 40], abs=1e-3)
    half = split.moved(answers, torch.tensor([[[1.0, 0, 1.1], [0, 1.0, 0]]]))
    assert half.ignored[0].tolist() == [True, True, False]


# the detector


@pytest.fixture
def made():
    """(detector, inputs, labels): on a small ResNet."""

    def make(detector="fcos", size=64, images=4):
        torch.manual_seed(0)
        encoder = resnet.build(SimpleNamespace(size=10, resize=size), ImageSpec(size, 3), "sdpa")
        setup = SimpleNamespace(processor=SimpleNamespace(size=size), classes="abc", options=SimpleNamespace(detector=detector))
        model = detectors.build(encoder, setup, None)
        corners = torch.rand(images, 3, 4) * 30
        corners[..., 2:] = corners[..., :2] + 8 + 20 * torch.rand(images, 3, 2)
        classes = torch.randint(0, 3, (images, 3))
        classes[0] = NO_BOX
        labels = Boxes(corners, classes, torch.zeros(images, 3, dtype=torch.bool))
        return model, torch.randn(images, 3, size, size), labels

    return make


@pytest.mark.parametrize(("name", "theirs", "plain"), [("fcos", FCOS, FCOSHead), ("retinanet", RetinaNet, RetinaNetHead)])
def test_the_loss_is_torchvisions(made, monkeypatch, name, theirs, plain):
    model, images, labels = made(name)
    outputs, anchors = model.eval().places(images), [model.grid] * 4
    targets = [{"boxes": c[k != NO_BOX], "labels": k[k != NO_BOX]} for c, k in zip(labels.corners, labels.classes, strict=True)]
    loss, shown = model({"inputs": images, "labels": labels})
    monkeypatch.setattr(type(model.head.head), "compute_loss", plain.compute_loss)
    expected = theirs.compute_loss(model.head, targets, outputs, anchors, *([model.counts] if name == "fcos" else []))
    assert float((loss.total / loss.n).detach()) == pytest.approx(float(sum(expected.values()).detach()), abs=1e-5)
    for part, value in expected.items():
        assert float((shown[part].total / shown[part].n).detach()) == pytest.approx(float(value.detach()), abs=1e-5)


def gradients(model, micros):
    model.zero_grad()
    loop.gradients(model, model, micros, lambda i: contextlib.nullcontext())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["fcos", "retinanet", "faster_rcnn"])
@pytest.mark.parametrize("boxes_there", [True, False])
def test_micro_batches_add_up(made, name, boxes_there):
    model, images, labels = made(name)
    if not boxes_there:
        labels = labels._replace(classes=torch.full_like(labels.classes, NO_BOX))
    model.eval()  # batch normalisation sees the images of a micro-batch alone

    def micro(start, stop):
        own = {"inputs": images[start:stop], "labels": labels.map(lambda x: x[start:stop])}
        return {**own, "ids": torch.arange(stop - start), "rows": rng.BatchRandom(0, 3, start, stop, 4)}

    whole, parts = [micro(0, 4)], [micro(i, i + 1) for i in range(4)]
    one, other = gradients(model, whole), gradients(model, parts)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.allclose(one[key], other[key], atol=1e-6, rtol=1e-4), key


def test_two_stages_have_torchvisions_losses_and_see_what_is_drawn_for_an_image(made):
    model, images, labels = made("faster_rcnn")
    assert {name.split(".")[0] for name, _ in model.head.named_parameters()} == {"backbone", "rpn", "roi_heads"}
    one = {"inputs": images[1:2], "labels": labels.map(lambda x: x[1:2])}
    model.eval()

    def losses(step):
        return {
            k: float((v.total / v.n).detach()) for k, v in model({**one, "rows": rng.BatchRandom(0, step, 1, 2, 4)})[1].items()
        }

    first = losses(0)
    assert losses(0) == first
    assert losses(1) != first
    every, other = two_stages.Sampler(10**6, 0.5), BalancedPositiveNegativeSampler(10**6, 0.5)
    every.numbers = torch.rand(100)
    answers = torch.randint(-1, 2, (500,))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(every([answers]), other([answers]), strict=True))
    few = two_stages.Sampler(20, 0.25)
    few.numbers = torch.rand(500)
    positive, negative = (x[0].bool() for x in few([answers]))
    assert (int(positive.sum()), int(negative.sum()), few.count) == (5, 15, 20)
    assert few.numbers[positive].max() < few.numbers[(answers == 1) & ~positive].min()
    assert set(first) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    found = model.predict([images])
    assert found["boxes"].shape == (4, head.MOST, 4)
    assert int(found["classes"].max()) < 3


def test_two_stages_learn_nothing_where_all_is_ignored(made):
    model, images, _ = made("faster_rcnn", images=1)
    corners = torch.tensor([[[-1.0, -1, 65, 65]]])
    labels = Boxes(corners, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool))
    loss, _ = model({"inputs": images, "labels": labels, "rows": rng.BatchRandom(0, 0, 0, 1, 1)})
    assert float(loss.total) == 0


def test_all_that_is_trained_gets_a_gradient():
    torch.manual_seed(0)
    encoder = cnn.build(SimpleNamespace(width=8, hidden=16), ImageSpec(64, 3), "sdpa")
    model = head.Detector(encoder, 3, 64, "fcos")
    labels = Boxes(torch.tensor([[[4.0, 4, 40, 44]]]), torch.tensor([[1]]), torch.zeros(1, 1, dtype=torch.bool))
    loss, _ = model({"inputs": torch.randn(1, 3, 64, 64), "labels": labels})
    loss.total.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not encoder.net.fc1.weight.requires_grad


def test_what_is_ignored_teaches_nothing(made):
    model, images, _ = made(images=2)
    model.eval()
    corners = torch.tensor([[[0.0, 0, 64, 64]]]).expand(2, 1, 4)
    all_ignored = Boxes(corners, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool))
    loss, _ = model({"inputs": images, "labels": all_ignored})
    # places of torchvision's grid lie at 0, 8, 16 ...: those at the very border are not inside
    empty, _ = model({"inputs": images, "labels": all_ignored._replace(classes=torch.full((2, 1), NO_BOX))})
    assert float(loss.total.detach()) < 0.5 * float(empty.total.detach())
    assert loss.n == 1


def test_one_image_learned_by_heart():
    source = scenes.read(SimpleNamespace(drawings=1, drawing_seed=3))
    part = source.parts["train"]
    pixels = torch.from_numpy(part.images[:, ::2, ::2].transpose(0, 3, 1, 2).copy())
    scene = part.shown.scenes[0]
    each = [(scene.corners / 2, scene.classes, scene.ignored)]
    split = BoxedSplit(pixels=pixels, decoder=None, rows=torch.arange(1), labels=None, shown=part.shown, each=each)
    torch.manual_seed(0)
    model = head.Detector(resnet.build(SimpleNamespace(size=10, resize=64), ImageSpec(64, 3), "sdpa"), 6, 64, "fcos").train()
    images, labels = (pixels / 128.0 - 1).repeat(2, 1, 1, 1), split.answers(torch.tensor([0, 0]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scores = []
    for step in range(1, 81):
        loss, _ = model({"inputs": images, "labels": labels})
        (loss.total / loss.n).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            scores.append(metrics.score(model.predict([images[:1]]), split))
            if scores[-1] == 1.0:
                break
    assert scores[-1] == 1.0


def test_places_far_from_a_multiple_are_refused(made):
    setup = SimpleNamespace(processor=SimpleNamespace(size=100), classes=["a"], options=SimpleNamespace(detector="fcos"))
    with pytest.raises(UserError, match=r"dataset\.image_size=100: detection wants a multiple of 32, such as 96"):
        detectors.build(None, setup, None)


# scores


def random_pairs(seed=0, images=30, classes=3):
    """Boxes found near true ones, and elsewhere, some of them ignored."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        n = int(generator.integers(0, 6))
        corners = generator.uniform(0, 150, (n, 4)).astype(np.float32)
        corners[:, 2:] = corners[:, :2] + generator.uniform(10, 120, (n, 2))
        kinds, ignored = generator.integers(0, classes, n), generator.random(n) < 0.15
        near = corners + generator.normal(0, 6, corners.shape).astype(np.float32)
        far = generator.uniform(0, 150, (4, 4)).astype(np.float32)
        far[:, 2:] = far[:, :2] + 30
        found = np.concatenate([near, near[:2] + 3, far])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        names = np.concatenate([np.where(generator.random(n) < 0.8, kinds, 0), kinds[:2], generator.integers(0, classes, 4)])
        scores = generator.random(len(found)).astype(np.float32)
        pairs.append((merge.Found(found, scores, names.astype(np.int64)), merge.Truth(corners, kinds.astype(np.int64), ignored)))
    return pairs


def test_average_precision_is_torchmetrics_and_pycocotools():
    pytest.importorskip("torchmetrics")
    pytest.importorskip("faster_coco_eval")
    pairs = random_pairs()
    ours = ap.by_class(ap.matches(pairs, 3))
    library = metrics.library(pairs, ["a", "b", "c"])
    assert ap.mean(ours) == pytest.approx(library["ap50"], abs=1e-6)
    assert 0.2 < library["ap50"] < 0.95
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), []
    annotations = []
    for i, (guess, right) in enumerate(pairs, start=1):
        for corners, kind, ignored in zip(*right, strict=True):
            left, top, width, height = (float(x) for x in (*corners[:2], *(corners[2:] - corners[:2])))
            area = width * height
            one = {"bbox": [left, top, width, height], "area": area, "iscrowd": int(ignored), "category_id": int(kind)}
            annotations.append({"id": len(annotations) + 1, "image_id": i, **one})
        found += written.of_scene(i, guess, [0, 1, 2], len(found) + 1)
    for entry, (corners) in zip(found, np.concatenate([guess.corners for guess, _ in pairs]), strict=True):
        entry["bbox"] = [float(x) for x in (*corners[:2], *(corners[2:] - corners[:2]))]  # which are rounded in files
    for entry, score in zip(found, np.concatenate([guess.scores for guess, _ in pairs]), strict=True):
        entry["score"] = float(score)
    images = [{"id": i + 1, "width": 300, "height": 300} for i in range(len(pairs))]
    truth.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": c, "name": str(c)} for c in range(3)],
        "info": {},
    }
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    for place, name in enumerate(("map", "ap50", "ap75", "map_small", "map_medium", "map_large")):
        value = library[name]
        assert (value if value is not None else -1) == pytest.approx(judge.stats[place], abs=1e-6), name


def test_the_part_of_each_image_is_the_jackknifes():
    found = ap.matches(random_pairs(images=12), 3)
    values, count = ap.influences(found), 12
    without = []
    for i in range(count):
        kept = [pair for j, pair in enumerate(random_pairs(images=12)) if j != i]
        without.append(ap.mean(ap.by_class(ap.matches(kept, 3))))
    spread = np.sqrt((count - 1) / count * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert values.mean() == pytest.approx(ap.mean(ap.by_class(found)))
    assert values.std(ddof=1) / np.sqrt(count) == pytest.approx(spread)


def test_many_images_are_left_out_in_blocks(monkeypatch):
    found = ap.matches(random_pairs(images=60), 3)
    exact = ap.influences(found)
    monkeypatch.setattr(ap, "BLOCKS", 20)
    rough = ap.influences(found)
    assert rough.mean() == pytest.approx(exact.mean())
    assert 0.6 < rough.std(ddof=1) / exact.std(ddof=1) < 1.6


def test_the_best_threshold_and_the_f1_of_images():
    one = np.array([[0, 0, 10, 10]], np.float32)
    right = merge.Truth(one, np.array([0]), np.array([False]))
    sure = merge.Found(np.concatenate([one, one + 50]), np.array([0.9, 0.4], np.float32), np.array([0, 0]))
    none = merge.Found(one[:0], np.zeros(0, np.float32), np.zeros(0, np.int64))
    found = ap.matches([(sure, right), (none, right), (none, merge.Truth(one[:0], np.zeros(0, int), np.zeros(0, bool)))], 1)
    threshold, f1 = ap.best_threshold(found)
    assert (threshold, f1) == (pytest.approx(0.9), pytest.approx(2 / 3))
    assert ap.image_f1(found, threshold).tolist() == [1, 0, 1]


def test_floors_see_the_training_boxes_alone():
    source = scenes.read(SimpleNamespace(drawings=12, drawing_seed=0))
    part = source.parts["train"]
    pixels = torch.from_numpy(part.images.transpose(0, 3, 1, 2).copy())
    each = [(s.corners, s.classes, s.ignored) for s in part.shown.scenes]
    whole = BoxedSplit(pixels=pixels, decoder=None, rows=torch.arange(12), labels=None, shown=part.shown, each=each)
    train, test = whole.subset(torch.arange(8)), whole.subset(torch.tensor([0, 8, 9, 10]))

    def raw(kind, split):
        return load.pixels(split), load.pixels(test), 1.0

    data = SimpleNamespace(test=test, classes=source.classes, raw=raw)
    near = floors.baseline_predictions("raw", data, train, None)
    n = len(each[0][1])
    np.testing.assert_allclose(near["boxes"][0, :n], each[0][0])
    usual = floors.baseline_predictions("chance", data, train, None)
    assert torch.equal(usual["boxes"][0], usual["boxes"][3])
    assert metrics.valid(usual, test, source.classes)
    assert 0 <= metrics.score(usual, test) < metrics.score(near, test)


def test_drawn_boxes_are_exact():
    image, corners, classes = scenes.drawn(np.random.default_rng(1))
    assert len(corners) == len(classes) >= 1
    for left, top, right, bottom in corners:
        inside = image[int(top) : int(bottom) + 1, int(left) : int(right) + 1].astype(int)
        assert inside.std() > 15  # something stands there
    again = scenes.drawn(np.random.default_rng(1))
    assert np.array_equal(image, again[0])


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install with: pip install 'ptmrun\[detection\]'"):
        detection.own_answers((None, None, None), None, [])


# runs

DEVICE = ["device=cpu", "device.precision=fp32", "device.threads=1", "device.workers=0"]
SMALL = [
    *CNN,
    "task=simclr",
    "downstream=detection",
    "dataset=boxes",
    "dataset.root=photos",
    "dataset.image_size=64",
    "pretrain.steps=2",
    "pretrain.batch_size=4",
    "pretrain.probes=1",
    "finetune.steps=4",
    "finetune.batch_size=4",
    "finetune.seeds=1",
    "finetune.log_every=2",
    "finetune.checkpoint_every=0",
    "evaluate.baselines=[chance,random_frozen]",
    *DEVICE,
]


def test_a_run_goes_on_exactly_and_finds_things_in_new_images(ptmrun, monkeypatch):
    pytest.importorskip("faster_coco_eval")
    coco(count=10)
    code, out, err = ptmrun(*SMALL)
    assert code == 0, err
    assert "COCO JSON: 10 boxes in 10 images" in out
    assert "category ids have gaps (1, 7)" in out
    assert "the same head, trained on the untrained model" in out
    whole = latest()
    results = json.loads((whole / "results.json").read_text())
    assert results["metric"] == "AP50"
    assert results["baselines"].keys() == {"chance", "random_frozen"}
    assert results["score"] == pytest.approx(results["metrics"]["ap50"], abs=1e-6)
    assert {p.stem for p in (whole / "figures").iterdir()} >= {"boxes", "precision_recall", "augmented"}
    assert "True boxes (above)" in (whole / "report.html").read_text()
    facts = json.loads((whole / "manifest.json").read_text())["data"]
    assert (facts["categories"], facts["tile"]) == ([1, 7], None)
    assert isinstance(json.loads((whole / "detections.json").read_text()), list)

    real = loop.fit

    def fit(model, batches, plan):
        steps = iter(range(100))
        return real(model, batches, dataclasses.replace(plan, stop=lambda: 15 if next(steps) == 1 else None))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", fit)
        assert ptmrun("stage=finetune", f"init={whole}", *DEVICE)[0] == 128 + 15
    parts = latest()
    code, _, err = ptmrun("resume", parts)
    assert code == 0, err
    first, second = (json.loads((run / "manifest.json").read_text())["finetuned_sha256"] for run in (whole, parts))
    assert first == second

    photo("new/a.png", (160, 90))
    Path("new/b.png").write_bytes(b"broken")
    monkeypatch.setattr(metrics, "SHOWN", 0.0)
    code, out, err = ptmrun("predict", whole, "new", "out=found.json", "pictures=drawn")
    assert code == 1, "one of them cannot be read"
    found = json.loads(Path("found.json").read_text())
    assert [(i["file_name"], i["width"], i["height"]) for i in found["images"]] == [("new/a.png", 160, 90)]
    assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert {a["category_id"] for a in found["annotations"]} <= {1, 7}
    for one in found["annotations"]:
        left, top, width, height = one["bbox"]
        assert 0 <= left <= left + width <= 160.01
        assert 0 <= top <= top + height <= 90.01
    with Image.open("drawn/a.png") as image:
        assert image.size == (160, 90)
    answers = ptmrun_package.load(str(whole)).predict([np.zeros((50, 70, 3), np.uint8), "new/b.png"])
    assert answers[0]["width"] == 70
    assert "error" in answers[1]
    code, out, err = ptmrun("export", whole, "exported")
    assert code == 0, err
    assert "the encoder, and its head apart" in out
    code, out, err = ptmrun("predict", whole, "new/a.png", "pictures=drawn")
    assert code == 2
    assert "is there already" in err


def test_what_does_not_fit_is_said_in_a_line(ptmrun):
    coco()
    code, _, err = ptmrun("dataset=boxes", "dataset.root=photos", "downstream=classification")
    assert code == 2
    assert "the data has no labels" in err
    assert "with dataset=boxes: downstream=detection" in err
    code, _, err = ptmrun("downstream=detection", "dataset=digits")
    assert code == 2
    assert "downstream=detection there is: dataset=boxes, scenes" in err
    Path("photos/instances.json").write_text("{}")
    code, _, err = ptmrun(*SMALL)
    assert code == 2
    assert err.count("\n") == 1
    assert "instances.json: is empty" in err


def test_training_and_validation_in_one_list():
    folder = Path("voc/ImageSets/Main")
    folder.mkdir(parents=True)
    (folder / "trainval.txt").write_text("a\nb\n")
    (folder / "test.txt").write_text("c\n")
    (folder / "cat_train.txt").write_text("a 1\nb -1\n")
    assert voc.lists(Path("voc")) == {"a": "train", "b": "train", "c": "test"}
    (folder / "train.txt").write_text("a\n")
    (folder / "test.txt").write_text("a\n")
    with pytest.raises(UserError, match="a is in the test split too"):
        voc.lists(Path("voc"))


def test_a_class_of_which_nothing_is_found_is_drawn():
    """As after so few steps that no score is above the least."""
    source = scenes.read(SimpleNamespace(drawings=4, drawing_seed=3))
    shown = source.parts["train"].shown
    pixels = torch.from_numpy(source.parts["train"].images[:4].transpose(0, 3, 1, 2).copy())
    each = [(scene.corners, scene.classes, scene.ignored) for scene in shown.scenes[:4]]
    split = BoxedSplit(pixels=pixels, decoder=None, rows=torch.arange(4), labels=None, shown=shown, each=each)
    nothing = head.packed([(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))] * 4)
    processor = ImageProcessor(torch.full((3,), 0.5), torch.full((3,), 0.25), torch.device("cpu"), 128)
    written = {}
    run = SimpleNamespace(write=lambda name, content: written.update({name: content}))
    for drawer, (name, *parts) in detection.PROBLEM.pictures(nothing, split, source.classes, processor):
        figures.DRAWERS[drawer](run, name, *parts)
    assert written.keys() == {"figures/boxes.png", "figures/precision_recall.png"}


def test_two_stages_in_a_run(ptmrun):
    pytest.importorskip("faster_coco_eval")
    coco(count=10)
    code, _, err = ptmrun(
        *SMALL, "downstream.detector=faster_rcnn", "stage=finetune+evaluate", "init=random", "evaluate.baselines=[chance]"
    )
    assert code == 0, err
    code, _, err = ptmrun("export", latest(), "graph", "format=onnx")
    assert code == 2
    assert "format=onnx: downstream.detector=faster_rcnn answers in many steps; leave format= out" in err
    assert ptmrun("export", latest(), "apart")[0] == 0
