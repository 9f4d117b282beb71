"""Folders as people have them: hidden and foreign ones, links, split folders, other endings."""

import os
import shutil
import sys

import pytest
from conftest import draw
from PIL import Image, features

from ptmrun.compose import compose
from ptmrun.data.images import load as images
from ptmrun.data.sources import folders, imagefolder, text
from ptmrun.errors import UserError
from ptmrun.storage import tensor_files

PLACE = b"caf\xe9"


def pets(root, *classes, each=12):
    for c, name in enumerate(classes or ("cat", "dog")):
        for i in range(each):
            draw(root / name / f"{i:02}.png", shade=3 * c)
    return root


def load(root, *more):
    argv = ["dataset=imagefolder", f"dataset.root={root}", *more]
    return images.load(imagefolder.read, compose(argv).dataset, 0, lambda *_: None)


def size(data):
    return len(data.train) + len(data.val) + len(data.test)


@pytest.mark.parametrize("place", [".ipynb_checkpoints", "cat/.ipynb_checkpoints", "__MACOSX", "dog/__pycache__/x"])
def test_hidden_and_foreign_folders_hold_no_samples(tmp_path, place):
    draw(pets(tmp_path / "pets") / place / "copy.png")
    data = load(tmp_path / "pets")
    assert (data.classes, size(data)) == (["cat", "dog"], 24)


def test_hidden_folders_hold_no_texts(tmp_path):
    for name in ("good/1", "bad/1", ".ipynb_checkpoints/1", "good/.ipynb_checkpoints/1"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text("a text\n")
    [found] = text.files_by_split(str(tmp_path / "texts")).values()
    assert [str(p.relative_to(tmp_path / "texts")) for p in found] == ["bad/1.txt", "good/1.txt"]


def test_run_folders_are_no_class(tmp_path, ptmrun, monkeypatch):
    """`cd photos; ptmrun dataset.root=.`, twice: the pictures that the first run drew are not data of the second."""
    root = pets(tmp_path / "pets")
    monkeypatch.chdir(root)
    argv = ["model=cnn", "task=simclr", "model.width=8", "model.hidden=16", "dataset=imagefolder", "dataset.root=."]
    more = ["stage=pretrain", "pretrain.steps=2", "pretrain.batch_size=8", "device=cpu", "device.threads=1", "pretrain.probes=0"]
    for run in range(2):
        code, out, err = ptmrun(*argv, *more)
        assert code == 0, err
        assert "2 classes" in out
        assert f"run folders of ptmrun are left out: {run + 1}" in out, "its own too"
    os.rename("outputs", "runs")
    assert load(".").classes == ["cat", "dog"]


def test_linked_class_folders_are_read(tmp_path):
    pets(tmp_path / "elsewhere", "bird")
    root = pets(tmp_path / "pets")
    (root / "bird").symlink_to(tmp_path / "elsewhere" / "bird")
    (root / "bird" / "again").symlink_to(root)  # a circle
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    data = load(root)
    assert (data.classes, size(data)) == (["bird", "cat", "dog"], 36)
    assert "links that lead nowhere are left out: 1" in data.notes


def test_other_endings_are_counted(tmp_path):
    root = pets(tmp_path / "pets")
    for name in ("a.HEIC", "b.heic", "c.HEIC", "d.txt", "e"):
        (root / "cat" / name).write_bytes(b"x")
    data = load(root)
    assert size(data) == 24
    assert "files of other kinds are left out: 3 .heic, 1 .txt, 1 no ending" in data.notes
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"no images in .*left out: 27 \.heic"):
        load(root)


@pytest.mark.parametrize("ending", [".avif", ".tga", ".jp2", ".ico", ".webp", ".PNG"])
def test_what_pillow_reads_is_read(tmp_path, ending):
    if ending == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    root = pets(tmp_path / "pets")
    for path in list(root.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".x.png"))
        Image.open(path).save(path.with_suffix(ending)) if ending != ".PNG" else shutil.copy(path, path.with_suffix(ending))
        path.with_suffix(".x.png").unlink()
        path.unlink()
    assert size(load(root)) == 24


def test_two_folders_of_one_split_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        pets(tmp_path / "pets" / name)
    with pytest.raises(UserError, match="val and valid are both the val split; put them together"):
        load(tmp_path / "pets")


def test_splits_without_one_to_train_on_are_refused(tmp_path):
    for name in ("val", "test"):
        pets(tmp_path / "pets" / name)
    with pytest.raises(UserError, match="there is test and val, but no folder train; add it"):
        load(tmp_path / "pets")


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    data = load(pets(tmp_path / "pets", "test", "control"))
    assert data.classes == ["control", "test"]


def test_a_folder_beside_the_splits_is_named(tmp_path):
    for name in ("train", "test"):
        pets(tmp_path / "pets" / name, each=20 if name == "train" else 6)
    draw(tmp_path / "pets" / "unlabeled" / "1.png")
    [note] = [note for note in load(tmp_path / "pets").notes if "unlabeled" in note]
    assert note.startswith("beside the splits, unlabeled is not used (to pretrain on such a folder: stage=pretrain")


@pytest.mark.parametrize("depth", [1, 2])
def test_folders_that_are_a_level_too_deep_are_taken(tmp_path, depth):
    inner = tmp_path / "download" / "/".join(["archive", "animals"][:depth])
    pets(inner)
    data = load(tmp_path / "download")
    assert data.classes == ["cat", "dog"]
    assert any("holds one folder alone" in note for note in data.notes)
    for name in ("train", "test"):
        pets(tmp_path / "other" / "archive" / name, each=20 if name == "train" else 6)
    assert len(load(tmp_path / "other").test) == 12


def test_one_class_folder_is_that(tmp_path):
    assert load(pets(tmp_path / "pets", "cat", each=20)).classes == ["cat"]


def test_a_stray_picture_takes_no_labels_away(tmp_path):
    root = pets(tmp_path / "pets", each=20)
    draw(root / "cover.png")
    data = load(root)
    assert (data.classes, size(data)) == (["cat", "dog"], 40)
    assert "1 images of the train split that stand outside of its class folders are left out" in data.notes
    few = pets(tmp_path / "few", each=3)
    draw(few / "cover.png")
    assert load(few).classes == ["cat", "dog"]
    for i in range(5):
        draw(root / f"cover{i}.png")
    data = load(root)
    assert (data.classes, size(data)) == ([], 46)


def test_names_that_are_no_utf8_are_shown_as_bytes(tmp_path):
    root = pets(tmp_path / "pets")
    os.rename(os.fsencode(root / "cat"), os.fsencode(root) + b"/ca\xff")
    data = load(root)
    assert data.classes == ["ca\\xff", "dog"]
    assert any(name.startswith("ca\\xff/") for names in data.created_splits.values() for name in names)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_class_folders_of_texts_that_are_no_utf8_are_shown_as_bytes(tmp_path):
    for folder in (b"caf\xe9", b"dog"):
        os.makedirs(os.fsencode(tmp_path) + b"/" + folder)
        for name in (b"1.txt", b"\xff.txt"):
            with open(os.fsencode(tmp_path) + b"/" + folder + b"/" + name, "w") as file:
                file.write(f"a text in {folder.hex()}")
    source = text.read(compose(["model=bert", "task=mlm", "dataset=text", f"dataset.root={tmp_path}"]).dataset)
    assert source.classes == ["caf\\xe9", "dog"]
    assert source.parts["train"].labels.tolist() == [0, 0, 1, 1]


def test_roots_and_run_folders_that_are_no_utf8_are_refused_in_a_line(tmp_path):
    with pytest.raises(
        UserError, match="this name is not UTF-8, as settings are; rename the file or folder, or point a link at it"
    ):
        compose(["dataset=imagefolder", f"dataset.root={os.fsdecode(PLACE)}"])
    file = tmp_path / os.fsdecode(PLACE) / "a.safetensors"
    for refused in (lambda: tensor_files.save(file, {}), lambda: tensor_files.load(file)):
        with pytest.raises(UserError, match="this name is not UTF-8, which the safetensors library needs"):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def walk(folder, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", "pets/secret"))
        yield from ()

    monkeypatch.setattr(folders.os, "walk", walk)
    with pytest.raises(UserError, match="pets/secret: cannot be read: Permission denied"):
        folders.files_below(tmp_path, {".png"})


def test_moved_pictures_are_the_same_data(tmp_path):
    a, b = tmp_path / "a" / "pets", tmp_path / "moved"
    for name in ("cat", "dog"):
        for i in range(8):
            draw(a / name / f"{i}.png")
    before = imagefolder.read(compose(["dataset=imagefolder", f"dataset.root={a}"]).dataset)
    a.rename(b)
    assert imagefolder.read(compose(["dataset=imagefolder", f"dataset.root={b}"]).dataset).fingerprint == before.fingerprint
