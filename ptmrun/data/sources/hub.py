"""Image data sets that the `datasets` library reads: from the Hugging Face hub, or a local folder."""

from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.data.sources.folders import SPLITS
from ptmrun.errors import UserError, nearest


class Column:
    """The image column of a split."""

    def __init__(self, rows: Any, column: str, split: str):
        self.rows, self.column, self.split = rows, column, split

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Image.Image:
        return self.rows[index][self.column]

    def label_of(self, index: int) -> str:
        return f"{self.split} row {index}"


def loaded(options: Any) -> Any:
    """What the library makes of `root` and `subset`: rows by split. Raises UserError."""
    import datasets

    if not options.root:
        raise UserError("dataset.root: the hub id or a local folder is needed, as in dataset.root=owner/name")
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(options.root, options.subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"dataset.root={options.root}: the datasets library cannot load it: {str(error).splitlines()[0]}"
        ) from None


def read(options: Any) -> Source:
    import datasets

    by_split = splits(options)
    features = by_split["train"].features
    image = column(features, options.image_column, datasets.Image, "dataset.image_column")
    label = column(features, options.label_column, datasets.ClassLabel, "dataset.label_column", needed=False)
    notes = without_withheld(by_split, label)
    parts = {}
    for split, rows in by_split.items():
        labels = np.asarray(rows[label], dtype=np.int64) if label else None
        parts[split] = Part(Column(rows, image, split), labels, groups(rows, options.group, split) if options.group else None)
    fingerprint = "-".join(rows._fingerprint for rows in by_split.values())
    return Source(parts, list(features[label].names) if label else [], fingerprint, notes)


def splits(options: Any) -> dict[str, Any]:
    """The rows of train, and of val and test where they are there. Raises UserError without train."""
    by_name = loaded(options)
    known = {SPLITS[str(name).lower()]: rows for name, rows in by_name.items() if str(name).lower() in SPLITS}
    if "train" not in known:
        raise UserError(f"dataset.root={options.root}: no train split; there is: {', '.join(map(str, by_name))}")
    return known


def without_withheld(loaded: dict[str, Any], label: str | None) -> list[str]:
    """Leaves out the splits whose class labels are all withheld (-1); notes on it."""
    others = {name: rows for name, rows in loaded.items() if name != "train" and label and len(rows[label])}
    withheld = [name for name, rows in others.items() if all(c == -1 for c in rows[label])]
    for name in withheld:
        del loaded[name]
    return [f"the labels of the {name} split are withheld (-1), so it is not used" for name in withheld]


def groups(rows: Any, name: str, split: str) -> np.ndarray:
    """The values of a column as text, [N]; a class label by its name."""
    import datasets

    feature = rows.features.get(name)
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        fits = [c for c, f in rows.features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)]
        raise UserError(f"dataset.group={name}: no column of single values of that name; there is: {', '.join(fits) or 'none'}")
    values = rows[name]
    for index, value in enumerate(values):
        if value is None:
            raise UserError(f"dataset.group={name}: {split} row {index} has no value")
    return np.array([feature.int2str(v) if isinstance(feature, datasets.ClassLabel) else str(v) for v in values])


def column(features: Any, name: str, kind: Any, key: str, needed: bool = True) -> Any:
    """The name of the column of this kind: the one asked for, or the first."""
    fits = [c for c, feature in features.items() if isinstance(feature, kind)]
    if name != "auto" and name not in fits:
        raise UserError(f"{key}={name}: no {kind.__name__} column of that name{nearest(name, fits)}")
    if name == "auto" and not fits and needed:
        raise UserError(f"{key}: no {kind.__name__} column; the columns are {', '.join(features)}")
    return name if name != "auto" else fits[0] if fits else None
