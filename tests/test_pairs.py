"""Images with captions: how they are read, split and drawn."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import draw
from pairs import loaded

from ptmrun.batch import Pair, Tokens, packed, unpacked
from ptmrun.data.modality import Unreadable
from ptmrun.data.pairs.batches import PairBatches
from ptmrun.data.pairs.split import same_ids
from ptmrun.data.sources import captions, shapes
from ptmrun.errors import UserError

COUNT = 12


def folder(place, rows=None, table="captions.csv"):
    """Pictures 0.png ... and a table of rows (file, caption, more ...), a row a picture unless given."""
    for i in range(COUNT):
        draw(place / f"{i}.png", shade=i)
    rows = rows or [{"file": f"{i}.png", "caption": f"bar number {i}"} for i in range(COUNT)]
    with open(place / table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return place


def told(data):
    return "\n".join(data.notes)


def test_samples_in_samples_are_packed_with_dots_and_back():
    tokens = Tokens(torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.int64))
    pair = Pair(torch.rand(2, 3, 4, 4), tokens)
    named = packed(pair)
    assert set(named) == {"images", "tokens.ids", "tokens.mask", "tokens.types"}
    again = unpacked(named, Pair)
    assert torch.equal(again.images, pair.images)
    assert torch.equal(again.tokens.ids, tokens.ids)
    with pytest.raises((KeyError, TypeError)):
        unpacked({"images": pair.images, "words.ids": tokens.ids}, Pair)


def test_shapes_hold_other_combinations_out_and_caption_what_they_show():
    data = loaded("dataset=shapes", "dataset.drawings=1")
    sizes = [len(split) for split in (data.train, data.val, data.test)]
    assert sum(sizes) == 1440
    assert data.test_seen == 0
    assert data.classes == list(shapes.COLOURS)
    ids = [split.same for split in (data.train, data.val, data.test)]
    assert not any(torch.isin(a, b).any() for a in ids for b in ids if a is not b)
    for label, own in list(zip(data.test.labels.tolist(), data.test.captions(), strict=True))[:50]:
        assert len(own) == 2
        assert all(data.classes[label] in text for text in own)
    assert loaded("dataset=shapes", "dataset.drawings=1").fingerprint == data.fingerprint
    red = shapes.draw(shapes.Drawing("square", "red", "left", "one", "large"), np.random.default_rng(0)).astype(int)
    marked = red[..., 0] - red[..., 2] > 100
    assert 20 < marked.sum() < 150
    assert np.nonzero(marked)[1].mean() < 12


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt", "beside"])
def test_captions_are_read_however_they_are_written(tmp_path, kind):
    place = folder(tmp_path / "photos")
    (place / "captions.csv").unlink()
    rows = [(f"{i}.png", [f"bar number {i}", f"a stripe at {i}, say"]) for i in range(COUNT)]
    if kind == "csv":
        lines = ["image,caption"] + [f'{name},"{text}"' for name, texts in rows for text in texts]
        (place / "captions.csv").write_text("\n".join(lines))
    elif kind == "jsonl":
        (place / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": n, "captions": t}) for n, t in rows))
    elif kind == "parquet":
        pq.write_table(pa.table({"path": [n for n, _ in rows], "text": [t for _, t in rows]}), place / "all.parquet")
    elif kind == "txt":
        (place / "captions.txt").write_text("".join(f"{n}#{k}\t{t}\n" for n, texts in rows for k, t in enumerate(texts)))
    else:
        for name, texts in rows:
            (place / name).with_suffix(".txt").write_text("\n".join(texts) + "\n\n")
    data = loaded("dataset=captions", f"dataset.root={place}")
    every = {text: own for split in (data.train, data.val, data.test) for own in split.captions() for text in own}
    assert len(every) == 2 * COUNT
    assert every["bar number 3"] == ["bar number 3", "a stripe at 3, say"]
    assert len(data.train) + len(data.val) + len(data.test) == COUNT


def test_equal_captions_images_and_names_stay_on_one_side():
    contents = torch.tensor([1, 2, 2, 3, 4, 5])
    texts = [["a"], ["b"], ["c"], ["C "], ["d"], ["e"]]
    same = same_ids(contents, texts, None).tolist()
    assert same[1] == same[2] == same[3]
    assert len(set(same)) == 4
    assert len(set(same_ids(contents, texts, ["x", "y", "z", "z", "x", "w"]).tolist())) == 3
    assert same_ids(contents[3:], texts[3:], None).tolist()[1:] == same[4:]  # numbers do not depend on what else is there


def test_a_users_own_splits_are_taken_and_what_they_share_is_counted(tmp_path):
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = [{"file": f"{i}.png", "caption": f"bar {i}", "split": splits[i], "maker": "ab"[i % 2]} for i in range(COUNT)]
    rows[11]["caption"] = "BAR 0"
    data = loaded("dataset=captions", f"dataset.root={folder(tmp_path / 'photos', rows)}", "dataset.group=maker")
    assert [len(data.train), len(data.val), len(data.test)] == [8, 2, 2]
    assert data.test_seen == 1
    assert "1 of 2 test images have the pixels, a caption or the name" in told(data)
    assert data.test.groups.tolist() == ["a", "b"]
    rows[3]["split"] = "training?"
    with pytest.raises(UserError, match="expected train, val or test"):
        loaded("dataset=captions", f"dataset.root={folder(tmp_path / 'photos', rows)}")


def test_captions_without_images_and_images_without_captions(tmp_path):
    rows = [{"file": f"{i}.png", "caption": f"bar {i}"} for i in range(COUNT - 1)]
    rows += [{"file": "gone.png", "caption": "nothing"}, {"file": "10.png", "caption": "  "}]
    place = folder(tmp_path / "photos", rows)
    wanted = ["dataset=captions", f"dataset.root={place}"]
    with pytest.raises(UserError, match=r"1 of 13 captions name an image that is not there, the first: .*gone\.png"):
        loaded(*wanted)
    data = loaded(*wanted, "dataset.max_unreadable=0.2")
    assert "1 captions whose image is not there are left out" in told(data)
    assert "1 of 13 rows have no caption" in told(data)
    assert "1 images have no caption" in told(data)
    (place / "3.png").write_bytes(b"no picture")
    data = loaded(*wanted, "dataset.max_unreadable=0.2")
    assert data.unreadable == ["3.png"]
    assert len(data.train) + len(data.val) + len(data.test) == COUNT - 2
    assert all("bar 3" not in own for split in (data.train, data.val, data.test) for own in split.captions())


def test_a_folder_without_captions_says_what_is_expected(tmp_path):
    place = folder(tmp_path / "photos")
    (place / "captions.csv").unlink()
    with pytest.raises(UserError, match=r"no captions in .*expected a table"):
        loaded("dataset=captions", f"dataset.root={place}")
    (place / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,\n" for i in range(COUNT)))
    with pytest.raises(UserError, match="no image with a caption"):
        loaded("dataset=captions", f"dataset.root={place}")
    (place / "captions.csv").write_text("a,b\n0.png,x\n")
    with pytest.raises(UserError, match="no column that is called as one of files are"):
        loaded("dataset=captions", f"dataset.root={place}")


def test_batches_draw_a_caption_of_each_image_whatever_the_accumulation():
    data = loaded("dataset=shapes", "dataset.drawings=1", "dataset.limit=100")
    inputs, options = data.processor(torch.device("cpu")), loaded_augment()

    def step(parts):
        return next(PairBatches(data.train, inputs, options, 0.0, 8, parts, 0, "test").iterate(3, 4))

    [whole], halves = step(1), step(2)
    ids = torch.cat([m["ids"] for m in halves])
    assert torch.equal(ids, whole["ids"])
    assert torch.equal(torch.cat([m["same"] for m in halves]), whole["same"])
    lengths = torch.cat([m["inputs"].tokens.mask.sum(1) for m in halves])
    assert torch.equal(lengths, whole["inputs"].tokens.mask.sum(1))
    own = data.train.captions()
    shown = [inputs.tokenizer.decode(row) for row in whole["inputs"].tokens.ids.tolist()]
    picked = [
        next(k for k, text in enumerate(own[i]) if squeezed(text) == squeezed(said))
        for i, said in zip(ids.tolist(), shown, strict=True)
    ]
    assert set(picked) == {0, 1}


def test_batches_of_pairs_are_augmented_as_images_are():
    data = loaded("dataset=shapes", "dataset.drawings=1", "dataset.limit=100")
    inputs, options = data.processor(torch.device("cpu")), loaded_augment().model_copy(update={"shift": 0.3})
    still, shifted = (
        next(PairBatches(data.train, inputs, options, strength, 8, 1, 0, "test").iterate(3, 4))[0]["inputs"]
        for strength in (0.0, 1.0)
    )
    assert not torch.equal(shifted.images, still.images)
    assert torch.equal(shifted.tokens.ids, still.tokens.ids)


def squeezed(text):
    return "".join(text.split())


def loaded_augment():
    from ptmrun.config.schema import Augment

    return Augment(shift=0.0, rotate=0.0, scale=0.0, shear=0.0, flip=False)


def test_the_processor_opens_pictures_with_and_without_a_text(tmp_path):
    data = loaded("dataset=shapes", "dataset.drawings=1", "dataset.limit=50")
    processor, path = data.processor(torch.device("cpu")), draw(tmp_path / "a.png")
    opened = processor.opened([path, (path, "two red circles"), (tmp_path / "no.png", "a"), (path, " ")])
    assert [isinstance(x, Unreadable) for x in opened] == [False, False, True, True]
    split = processor.split(opened[:2])
    inputs = processor(next(split.all()))
    assert inputs.images.shape == (2, 3, 32, 32)
    assert inputs.tokens.mask.sum(1)[0] < inputs.tokens.mask.sum(1)[1]


def test_columns_that_are_not_there_are_named(tmp_path):
    place = folder(tmp_path / "photos")
    with pytest.raises(UserError, match=r"dataset\.together=name: .* has no such column; it has: file, caption"):
        loaded("dataset=captions", f"dataset.root={place}", "dataset.together=name")
    assert captions.column(place, ["File", "x"], "file_column", "auto", captions.FILE) == "File"
