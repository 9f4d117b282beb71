"""Text data sets that the `datasets` library reads: from the Hugging Face hub, or a local folder."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ptmrun.data.sources import TextSource, hub
from ptmrun.data.sources.rows import Row, gathered
from ptmrun.errors import UserError, nearest


class Columns(NamedTuple):
    text: str
    second: str | None
    label: str | None
    group: str | None


def read(options: Any) -> TextSource:
    splits = hub.splits(options)
    columns = choose(splits["train"].features, options)
    names = class_names(splits["train"].features.get(columns.label))
    notes = hub.without_withheld(splits, columns.label) if names else []
    makers: dict[str, Callable[[], Iterator[Row]]] = {n: partial(rows_of, rows, columns, names, n) for n, rows in splits.items()}
    return gathered(makers, options.root, options.label_separator, "replace", notes, names)


def choose(features: Any, options: Any) -> Columns:
    """The columns that the options name; text_column=auto is `text` or the only column of texts, label_column=auto `label`."""
    import datasets

    texts = [c for c, f in features.items() if isinstance(f, datasets.Value) and f.dtype in ("string", "large_string")]
    label = ("label" if "label" in features else None) if options.label_column == "auto" else options.label_column
    text = options.text_column
    if text == "auto":
        fits = ["text"] if "text" in texts else [c for c in texts if c not in (options.pair_column, label, options.group)]
        if len(fits) != 1:
            raise UserError(f"dataset.text_column: choose the column of texts; the columns are {', '.join(features)}")
        text = fits[0]
    keys = {"text_column": (text, texts), "pair_column": (options.pair_column, texts)}
    keys |= {"label_column": (label, list(features)), "group": (options.group, list(features))}
    for key, (name, fits) in keys.items():
        if name is not None and name not in fits:
            raise UserError(f"dataset.{key}={name}: no such column{nearest(name, fits)}")
    return Columns(text, options.pair_column, label, options.group)


def class_names(feature: Any) -> list[str]:
    """Of a class-label column, or one of lists of them; of any other none, and then the values themselves are the classes."""
    return list(getattr(getattr(feature, "feature", feature), "names", None) or [])


def rows_of(rows: Any, columns: Columns, names: list[str], split: str) -> Iterator[Row]:
    """The rows of a split; a label is its class's name."""

    def called(label: Any) -> Any:
        if isinstance(label, list):
            return [called(c) for c in label]
        return "" if label is None or (names and label < 0) else names[label] if names else label

    for number, row in enumerate(rows):
        where = f"{split} row {number}"
        if columns.group and row[columns.group] is None:
            raise UserError(f"dataset.group={columns.group}: {where} has no value")
        second = (row[columns.second] or "") if columns.second else None
        label = called(row[columns.label]) if columns.label else None
        yield Row(where, row[columns.text] or "", second, label, row[columns.group] if columns.group else None)
