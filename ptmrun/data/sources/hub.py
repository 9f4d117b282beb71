"""Image data sets that the `datasets` library reads: from the Hugging Face hub, or a local folder."""

import copy
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmrun.data.sources import Part, Source
from ptmrun.data.sources.folders import SPLITS, nfc
from ptmrun.data.sources.picture_labels import likely, name_of, numbered
from ptmrun.errors import UserError, nearest
from ptmrun.storage.content import hashes


class Column:
    """The images of a split, in some of its rows [n]."""

    def __init__(self, rows: Any, column: str, split: str, places: np.ndarray):
        import datasets

        self.kind, self.rows = rows.features[column], rows.cast_column(column, datasets.Image(decode=False))
        self.column, self.split, self.places = column, split, places

    def at(self, places: np.ndarray) -> "Column":
        """The images of other rows of the split."""
        other = copy.copy(self)
        other.places = places
        return other

    def __len__(self) -> int:
        return len(self.places)

    def picture(self, index: int) -> Image.Image:
        stored = self.rows[int(self.places[index])][self.column]
        if stored is None:
            raise OSError("there is no picture")
        if stored["bytes"] is None and not Path(stored["path"]).is_file():  # somewhere else, which the library knows to reach
            return self.kind.decode_example(stored)
        image = Image.open(stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"]))
        return image.convert(self.kind.mode) if self.kind.mode else image

    def label_of(self, index: int) -> str:
        return f"{self.split} row {self.places[index]}"


def loaded(options: Any) -> Any:
    """What the library makes of `root` and `subset`: rows by split. Raises UserError."""
    import datasets

    if not options.root:
        raise UserError("dataset.root: the hub id or a local folder is needed, as in dataset.root=owner/name")
    datasets.disable_progress_bars()
    try:
        by_split = from_disk(Path(options.root)) or datasets.load_dataset(options.root, options.subset)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"dataset.root={options.root}: the datasets library cannot load it: {reason}") from None
    return {name: with_pictures(rows) for name, rows in by_split.items()}


def from_disk(root: Path) -> dict[str, Any] | None:
    """What `save_to_disk` wrote into a folder, by split; None for any other. Its fingerprints are of its files, as those that are
    written beside them do not follow when these change."""
    import datasets

    if not any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    saved = datasets.load_from_disk(str(root))
    by_split = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    for rows in by_split.values():
        contents = hashes(Path(file["filename"]) for file in rows.cache_files)
        rows._fingerprint = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return by_split


def with_pictures(rows: Any) -> Any:
    """Rows whose columns of bytes and path are images, as in tables that other programs write."""
    import datasets

    stored = [name for name, feature in rows.features.items() if isinstance(feature, dict) and set(feature) == {"bytes", "path"}]
    for name in stored:
        rows = rows.cast_column(name, datasets.Image())
    return rows


def read(options: Any) -> Source:
    return of_splits(splits(options), options)


def of_splits(by_split: dict[str, Any], options: Any) -> Source:
    """The images of these rows, and their labels."""
    import datasets

    features = by_split["train"].features
    image = column(features, options.image_column, datasets.Image, "dataset.image_column")
    label, notes = label_column(features, options.label_column)
    names = list(map(nfc, features[label].names)) if label and isinstance(features[label], datasets.ClassLabel) else []
    notes += without_withheld(by_split, label) if names else []
    fingerprint = "-".join(rows._fingerprint for rows in by_split.values())
    found = None
    if label:
        values = {split: class_names(rows, label, names, split) for split, rows in by_split.items()}
        found = numbered(values, f"dataset.label_column={label}", lambda split, row: f"{split} row {row}", names)
        notes += found.notes
        if not names or any(len(some) < len(values[split]) for split, some in found.rows.items()):
            chosen = [label, [[split, some.tolist()] for split, some in found.rows.items()]]
            fingerprint += f"-{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()}"
    parts = {}
    for split, rows in by_split.items():
        if found and split not in found.rows:
            continue
        places = found.rows[split] if found else np.arange(len(rows))
        of_groups = groups(rows, options.group, split)[places] if options.group else None
        parts[split] = Part(Column(rows, image, split, places), found.numbers[split] if found else None, of_groups)
    return Source(parts, found.classes if found else [], fingerprint, notes)


def label_column(features: Any, wanted: str | None) -> tuple[str | None, list[str]]:
    """The column of the labels, and notes on how it was chosen: the one that is asked for; of auto the first of class labels,
    else one of single values that is called as labels are. Raises UserError."""
    import datasets

    if wanted is None:
        return None, []
    named = [c for c, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    single = [c for c, feature in features.items() if isinstance(feature, datasets.Value)]
    if wanted != "auto":
        if wanted not in named + single:
            there = nearest(wanted, named + single)
            raise UserError(f"dataset.label_column={wanted}: no column of labels of that name{there}; null does without")
        return wanted, []
    if named:
        more = f"; there is also {', '.join(named[1:])} (dataset.label_column)" if named[1:] else ""
        return named[0], [f"labels are those of the column {named[0]}{more}"] if more else []
    if likeliest := likely(single):
        return likeliest, [f"labels are the values of the column {likeliest} (dataset.label_column)"]
    return None, [f"no column of labels is known; dataset.label_column names one of {', '.join(single)}"] if single else []


def class_names(rows: Any, label: str, names: list[str], split: str) -> list[str | None]:
    """The class of each row, [N]; none where it is null, empty, or a class label is below 0."""
    if names:
        return [None if number is None or number < 0 else names[number] for number in rows[label]]
    return [name_of(value, f"dataset.label_column={label}: {split} row {row}") for row, value in enumerate(rows[label])]


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
    withheld = [name for name, rows in others.items() if all(c is None or c == -1 for c in rows[label])]
    for name in withheld:
        del loaded[name]
    return [f"the labels of the {name} split are withheld (-1), so it is not used" for name in withheld]


def groups(rows: Any, name: str, split: str, key: str = "dataset.group") -> np.ndarray:
    """The values of a column as text, [N]; a class label by its name."""
    import datasets

    feature = rows.features.get(name)
    if not isinstance(feature, datasets.Value | datasets.ClassLabel):
        fits = [c for c, f in rows.features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)]
        raise UserError(f"{key}={name}: no column of single values of that name; there is: {', '.join(fits) or 'none'}")
    values = rows[name]
    for index, value in enumerate(values):
        if value is None:
            raise UserError(f"{key}={name}: {split} row {index} has no value")
    return np.array([nfc(feature.int2str(v) if isinstance(feature, datasets.ClassLabel) else str(v)) for v in values])


def column(features: Any, name: str, kind: Any, key: str) -> str:
    """The name of the column of this kind: the one asked for, or the first. Raises UserError."""
    fits = [c for c, feature in features.items() if isinstance(feature, kind)]
    if name != "auto" and name not in fits:
        raise UserError(f"{key}={name}: no {kind.__name__} column of that name{nearest(name, fits)}")
    if not fits:
        raise UserError(f"{key}: no {kind.__name__} column; the columns are {', '.join(features)}")
    return name if name != "auto" else fits[0]
