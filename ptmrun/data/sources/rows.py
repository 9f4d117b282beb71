"""Rows of texts with labels, second texts and groups -> a source."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from itertools import islice, takewhile
from typing import Any, NamedTuple

import numpy as np

from ptmrun.data.sources import TextPart, TextSource, labels
from ptmrun.data.sources.folders import nfc
from ptmrun.errors import UserError, nearest, printable


class Row(NamedTuple):
    """A text and what belongs to it; `where` is what the user calls it: a file and line, or row."""

    where: str
    text: str
    second: str | None = None
    label: Any = None
    group: Any = None


def number(value: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", value, re.ASCII) is not None


def class_order(name: str) -> tuple[bool, float, str]:
    """By which names of classes are sorted: numbers first."""
    return not number(name), float(name) if number(name) else 0.0, name


def kept(rows: Callable[[], Iterator[Row]], errors: str) -> Iterator[str]:
    """The texts of rows that have one (in a pair, two)."""
    for row in rows():
        if row.text.strip() and (row.second is None or row.second.strip()):
            yield row.text if errors == "strict" else labels.mended(row.text)


def gathered(
    makers: dict[str, Callable[[], Iterator[Row]]],
    root: str,
    separator: str | None,
    errors: str,
    notes: Iterable[str] = (),
    classes: Collection[str] = (),
    labelled: bool = False,
) -> TextSource:
    """Splits that stream rows -> the source. Class names are sorted unless given; labels come as text, numbers or lists."""
    first = [
        (row.where, row.label) for row in islice(takewhile(lambda row: row.label is not None, makers["train"]()), labels.FIRST)
    ]
    writing = labels.Writing(first, separator, bool(classes))
    said, columns = [*notes, *writing.notes], {name: Scan(rows, errors, writing) for name, rows in makers.items()}
    for name, scan in columns.items():
        if not scan.count:
            what = f"all {scan.skipped} texts are empty" if scan.skipped else "no text there"
            raise UserError(f"dataset.root={root}: {what} in the {name} split")
        if scan.skipped > scan.count and (scan.labels or scan.seconds):  # a corpus may have a column that few rows have
            raise UserError(
                f"{scan.empty}: has no text, as {scan.skipped:,} of {scan.skipped + scan.count:,} in the {name} split; "
                "name the column of the texts (dataset.text_column), or take the empty ones away"
            )
        if scan.skipped:
            said.append(f"{scan.skipped} empty texts of the {name} split are skipped, the first at {scan.empty}")
    if not classes and (spelt := labels.spellings(c for scan in columns.values() for c in scan.first)):
        for scan in columns.values():
            scan.respell(spelt)
        said.append(f"labels that are equal numbers are one class: {', '.join(spelt)}")
    names = list(map(nfc, classes)) or sorted(columns["train"].first, key=class_order)
    if labelled and not names:
        raise UserError(
            f"dataset.root={root}: no text of the training split has a label; expected a column of them (dataset.label_column), "
            "or .txt files in a folder for each class"
        )
    for name, scan in columns.items():
        if strange := [c for c in scan.first if c not in names]:
            raise UserError(
                f"{scan.first[strange[0]]}: the label {printable(strange[0])} of the {name} split is none of the training split"
                f"{nearest(printable(strange[0]), map(printable, names))}"
            )
    said += [] if classes else labels.doubts(names)
    index = {c: i for i, c in enumerate(names)}
    several = any(scan.several for scan in columns.values())
    parts, digest = {}, hashlib.sha256()
    for name, scan in columns.items():
        truth = scan.array(index, several) if names else None
        groups = np.array(scan.groups) if scan.groups else None
        parts[name] = TextPart(
            partial(kept, makers[name], errors),
            scan.count,
            scan.size,
            scan.fingerprint,
            truth,
            scan.seconds or None,
            groups,
            scan.names or None,
        )
        digest.update(json.dumps([name, scan.fingerprint, scan.labels, scan.seconds, scan.groups]).encode())
    digest.update(json.dumps(names).encode())
    return TextSource(parts, names, digest.hexdigest(), said)


class Scan:
    """What one pass over the rows of a split finds."""

    def __init__(self, rows: Callable[[], Iterator[Row]], errors: str, writing: labels.Writing):
        self.count = self.size = self.skipped = 0
        self.labels: list[list[str]] = []
        self.seconds: list[str] = []
        self.groups: list[str] = []
        self.names: list[str] = []  # of labelled texts and pairs: a corpus may be too large for that
        self.first: dict[str, str] = {}  # class -> where it was seen first
        self.empty = ""  # where the first empty text is
        self.several = writing.separator is not None
        digest = hashlib.sha256()
        for row in rows():
            if not row.text.strip() or (row.second is not None and not row.second.strip()):
                self.skipped, self.empty = self.skipped + 1, self.empty or row.where
                continue
            try:
                data = row.text.encode("utf-8", errors)
                if row.second is not None:
                    self.seconds.append(row.second.encode("utf-8", errors).decode())
            except UnicodeEncodeError:
                raise UserError(
                    f"{row.where}: half a surrogate pair (\\ud800 ...); mend it, or set dataset.errors=replace"
                ) from None
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
            self.count += 1
            self.size += len(data)
            if row.group is not None:
                self.groups.append(nfc(labels.mended(str(row.group))))
            if row.label is not None or row.second is not None:
                self.names.append(row.where)
            if row.label is not None:
                self.labels.append(self.classes(row, writing))
        self.fingerprint = digest.hexdigest()

    def classes(self, row: Row, writing: labels.Writing) -> list[str]:
        """The classes of a row."""
        classes, several = writing.classes(row.label, row.where)
        self.several |= several
        if not all(classes):
            raise UserError(
                f"{row.where}: the label is empty; give it one, or remove the row; a corpus needs none (label_column=null)"
            )
        for name in classes:
            self.first.setdefault(name, row.where)
        return classes

    def respell(self, spelt: dict[str, str]) -> None:
        """Takes other names for classes."""
        self.labels = [[spelt.get(c, c) for c in classes] for classes in self.labels]
        self.first = {spelt.get(c, c): where for c, where in reversed(self.first.items())}

    def array(self, index: dict[str, int], several: bool) -> np.ndarray:
        """int64 [N], or bool [N, classes] where a text may have several classes."""
        if not several:
            return np.array([index[c] for [c] in self.labels], dtype=np.int64)
        labels = np.zeros((self.count, len(index)), dtype=bool)
        for row, names in enumerate(self.labels):
            labels[row, [index[c] for c in names]] = True
        return labels
