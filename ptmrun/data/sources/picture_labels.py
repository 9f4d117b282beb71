"""Labels that stand in a column beside pictures: of a hub data set, or of metadata.csv."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ptmrun.data.sources.folders import nfc
from ptmrun.data.sources.labels import mended
from ptmrun.data.sources.rows import class_order
from ptmrun.errors import UserError, nearest, printable

NAMES = ("label", "labels", "class", "category", "target")  # of a column of labels, where none is asked for


class Labels(NamedTuple):
    """Of each split that has labels: which of its rows have one, int64 [n], and which, int64 [n]; and what they mean."""

    rows: dict[str, np.ndarray]
    numbers: dict[str, np.ndarray]
    classes: list[str]
    notes: list[str]


def likely(columns: Iterable[str]) -> str | None:
    """The column that is called as one of labels."""
    return next((c for name in NAMES for c in columns if c.lower() == name), None)


def numbered(
    values: dict[str, list[str | None]],
    key: str,
    where: Callable[[str, int], str],
    classes: Iterable[str] = (),
    noun: str = "images",
) -> Labels:
    """Names of classes, or none, in each row of each split -> numbers. Rows without a label are left out, and so are splits other
    than train without any; notes on both. The classes are sorted unless given. `where` is what the user calls a row, `noun` all
    rows.

    Raises UserError where training has no label, where no two rows share one, and for a class that training lacks.
    """
    rows: dict[str, np.ndarray] = {}
    notes = []
    for split, names in values.items():
        labelled = np.array([row for row, name in enumerate(names) if name is not None], dtype=np.int64)
        if len(labelled):
            rows[split] = labelled
            if lacking := len(names) - len(labelled):
                first = where(split, next(row for row, name in enumerate(names) if name is None))
                notes.append(f"{lacking} of {len(names)} {noun} of the {split} split have no label and are left out: {first} ...")
        elif split == "train":
            raise UserError(
                f"{key}: no {noun.removesuffix('s')} of the training split has a label; to do without: dataset.label_column=null"
            )
        else:
            notes.append(f"no {noun.removesuffix('s')} of the {split} split has a label, so it is not used")
    train = {str(values["train"][row]) for row in rows["train"]}
    if not classes and len(train) == len(rows["train"]) > 2:
        raise UserError(
            f"{key}: each of the {len(train)} training {noun} has a label of its own, such as {printable(min(train))[:40]}; "
            "expected the column of the classes, or null"
        )
    known = list(classes) or sorted(train, key=class_order)
    number = {name: i for i, name in enumerate(known)}
    for split, some in rows.items():
        if strange := [(row, name) for row in some if (name := values[split][row]) not in number]:
            row, name = strange[0]
            raise UserError(
                f"{where(split, int(row))}: the label {printable(str(name))} is none of the training split"
                f"{nearest(printable(str(name)), map(printable, known))}"
            )
    numbers = {split: np.array([number[str(values[split][row])] for row in some]) for split, some in rows.items()}
    return Labels(rows, numbers, known, notes)


def name_of(value: Any, where: str) -> str | None:
    """A label as text; none where it is null, NaN or empty. Raises UserError for what names no class."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():  # as pandas makes of whole numbers where one is missing
        value = int(value)
    if not isinstance(value, str | int):
        raise UserError(f"{where}: expected a label, found {printable(repr(value))[:80]}")
    return nfc(mended(str(value).strip())) or None
