"""Images with captions that the datasets library has written."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from pairs import loaded
from PIL import Image

from ptmrun.errors import UserError

COUNT = 24


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))


def rows(seed=0, count=COUNT, **columns):
    pictures = [picture(100 * seed + i) for i in range(count)]
    known = {"image": pictures, "name": [f"thing {seed} {i // 2}" for i in range(count)], **columns}
    features = {"image": datasets.Image(), "name": datasets.Value("string")}
    made = datasets.Dataset.from_dict(known)
    return made.cast(datasets.Features({**made.features, **features}))


def lists(count=COUNT):
    """Several captions of an image; of the second none, of the third one that is there twice."""
    captions = [[f"number {i}", f"the image\nof number {i}"] for i in range(count)]
    captions[1], captions[2] = ["", None], ["number 2", "number 2"]
    return captions


def test_a_saved_data_set_is_read_with_its_splits(tmp_path):
    whole = datasets.DatasetDict(
        {"train": rows(captions=lists()), "test": rows(1, 6, captions=[[f"other {i}"] for i in range(6)])}
    )
    whole.save_to_disk(tmp_path / "saved")
    data = loaded("dataset=caption_hub", f"dataset.root={tmp_path / 'saved'}")
    assert len(data.train) + len(data.val) == COUNT - 1
    assert data.test.captions() == [[f"other {i}"] for i in range(6)]
    captions = data.train.captions() + data.val.captions()
    assert ["number 5", "the image of number 5"] in captions
    assert ["number 2"] in captions
    assert "1 of 24 images have no caption and are left out: train row 1 ..." in data.notes


@pytest.mark.parametrize("kind", ["disk", "parquet", "plain"])
def test_one_table_of_pictures_and_texts(tmp_path, kind):
    table = rows(text=[f"number {i}" for i in range(COUNT)])
    if kind == "disk":
        table.save_to_disk(tmp_path / "data")
    else:
        (tmp_path / "data").mkdir()
        table.to_parquet(tmp_path / "data" / "train.parquet")
    if kind == "plain":  # as other programs write it: nothing says that these are pictures
        plain = pa.parquet.read_table(tmp_path / "data" / "train.parquet").replace_schema_metadata(None)
        pa.parquet.write_table(plain, tmp_path / "data" / "train.parquet")
    data = loaded("dataset=caption_hub", f"dataset.root={tmp_path / 'data'}", "dataset.together=name")
    assert len(data.train) + len(data.val) + len(data.test) == COUNT
    number = int(data.train.captions()[0][0].split()[1])
    shown = next(data.train.images.all(1))[0].numpy().astype(int)
    apart = [np.abs(shown.mean((1, 2)) - np.asarray(picture(i)).mean((0, 1))).sum() for i in range(COUNT)]
    assert int(np.argmin(apart)) == number
    sides = [set(split.same.tolist()) for split in (data.train, data.val, data.test)]
    assert not sides[0] & sides[2]
    assert len(set.union(*sides)) == COUNT // 2


def test_columns_are_chosen_and_named(tmp_path):
    rows(note=["a"] * COUNT).save_to_disk(tmp_path / "two")
    root = f"dataset.root={tmp_path / 'two'}"
    with pytest.raises(
        UserError, match=r"dataset\.caption_column: choose the column of captions; the columns are image, name, note"
    ):
        loaded("dataset=caption_hub", root)
    with pytest.raises(UserError, match=r"dataset\.caption_column=nam: no column of texts, or lists of them, of that name"):
        loaded("dataset=caption_hub", root, "dataset.caption_column=nam")
    with pytest.raises(UserError, match=r"dataset\.together=image: no column of single values"):
        loaded("dataset=caption_hub", root, "dataset.caption_column=name", "dataset.together=image")
    rows(text=[""] * COUNT).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match="no image of the train split has a caption"):
        loaded("dataset=caption_hub", f"dataset.root={tmp_path / 'empty'}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    with pytest.raises(UserError, match="the datasets library cannot load it"):
        loaded("dataset=caption_hub", f"dataset.root={tmp_path / 'broken'}")


def test_a_changed_file_is_other_data(tmp_path):
    prints = []
    for seed in (0, 1):
        rows(text=[f"number {i}" for i in range(COUNT)], seed=seed).save_to_disk(tmp_path / "data")
        prints.append(loaded("dataset=caption_hub", f"dataset.root={tmp_path / 'data'}").fingerprint)
    assert prints[0] != prints[1]
