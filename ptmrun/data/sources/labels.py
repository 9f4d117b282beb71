"""How the labels of rows are written: as one class, as several, or as marks of 0 and 1."""

import math
import re
from collections.abc import Iterable
from typing import Any

from ptmrun.data.sources.folders import nfc
from ptmrun.errors import UserError, printable

BITS = {"0": False, "1": True, "0.": False, "1.": True, "0.0": False, "1.0": True, "false": False, "true": True}
ITEM = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)"|([^\s,'"]+)""")
LIKE_LISTS = re.compile(r"\[(.*)\]|\{(.*)\}|\((.*)\)", re.DOTALL)
FIRST = 200  # rows by which the way of writing is judged
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?", re.ASCII)  # 007 is none: it may be a code


class Flags(list[str]):
    """The classes of a row that has a column of 0 and 1 for each."""


class Writing:
    """How labels are written, by the first ones, which are (where, label); separator: between the classes of a text, or None;
    named: classes have names already."""

    def __init__(self, first: list[tuple[str, Any]], separator: str | None, named: bool = False):
        self.separator, self.width, self.notes = separator, 0, list[str]()
        texts = [(where, label) for where, label in first if isinstance(label, str) and label.strip()]
        parsed = [as_list(label) for _, label in texts]
        sure = [found is not None and found[1] for found in parsed]
        self.lists = any(sure) and None not in parsed
        if any(sure) and not self.lists:
            (one, label), other = texts[sure.index(True)], texts[parsed.index(None)][1]
            raise UserError(
                f"{one}: the label {printable(label)[:60]} is a list, and {printable(other)[:60]} is none; write all labels as "
                "lists, or none"
            )
        if self.lists:
            self.notes.append(
                f"the labels are lists that are written as text, such as {printable(texts[sure.index(True)][1])[:60]}"
            )
        single = {isinstance(label, str) for _, label in first if not isinstance(label, list)}
        if len(single) == 2:
            self.notes.append("some labels are text and others are not; those that read the same are one class")
        items = [self.items(label, where) for where, label in first if label is not None and not isinstance(label, Flags)]
        widths = {len(each) for each in items}
        if not named and len(widths) == 1 and min(widths) > 1 and all(bit(c) is not None for each in items for c in each):
            [self.width] = widths
            self.notes.append(f"the labels are lists of 0 and 1: {self.width} classes, numbered from 0")

    def classes(self, label: Any, where: str) -> tuple[list[str], bool]:
        """The classes of a row, and whether by the way they are written there may be several."""
        if isinstance(label, Flags):
            return list(label), len(label) != 1 or self.separator is not None
        items = self.items(label, where)
        if not self.width:
            return items, len(items) != 1 or isinstance(label, list) or self.separator is not None
        bits = [bit(item) for item in items]
        if len(items) != self.width or None in bits:
            raise UserError(
                f"{where}: expected a list of {self.width} times 0 or 1 as a label, found {printable(str(label))[:80]}"
            )
        chosen = [str(i) for i, on in enumerate(bits) if on]
        return chosen, len(chosen) != 1 or self.separator is not None

    def items(self, label: Any, where: str) -> list[str]:
        if isinstance(label, list):
            return [class_name(c, where) for c in label]
        if self.lists and isinstance(label, str) and label.strip():
            if (found := as_list(label)) is None:
                raise UserError(f"{where}: expected a list as a label, as in the rows before, found {printable(label)[:80]}")
            return found[0]
        name = class_name(label, where)
        return [name] if self.separator is None else [c.strip() for c in name.split(self.separator) if c.strip()]


def as_list(text: str) -> tuple[list[str], bool] | None:
    """The items of a list that is written as text (as Python, JSON or numpy write it, or `0 1 1`), and whether it must be one:
    [word] may be a name. None: it is no list."""
    text = text.strip()
    if re.fullmatch(r"[01](\s+[01])+", text):
        return text.split(), True
    if not (match := LIKE_LISTS.fullmatch(text)):
        return None
    inner = next(group for group in match.groups() if group is not None)
    quoted = re.search("['\"]", inner) is not None
    if text[0] != "[" and (not quoted or ":" in inner):
        return None
    if quoted:
        if ITEM.sub("", inner).strip(" ,\n\t"):
            return None
        return [re.sub(r"\\(.)", r"\1", next(filter(None, item.groups()), "")) for item in ITEM.finditer(inner)], True
    if "," in inner:
        return [item.strip() for item in inner.split(",") if item.strip()], True
    items = inner.split()
    if all(NUMBER.fullmatch(item) for item in items):
        return items, True
    return [inner.strip()], False


def bit(value: Any) -> bool | None:
    """None: it is none."""
    return BITS.get(str(value).strip().lower())


def class_name(label: Any, where: str) -> str:
    """A label as text; NaN, which tables have where there is none, is empty."""
    if isinstance(label, dict | list):
        raise UserError(f"{where}: expected a label, found {printable(repr(label))[:80]}")
    return "" if isinstance(label, float) and math.isnan(label) else nfc(mended(str(label).strip()))


def mended(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, as question mark."""
    return text.encode("utf-8", "replace").decode()


def spellings(names: Iterable[str]) -> dict[str, str]:
    """{a class: how it is spelt} of numbers that stand there in several ways: 0.0 is 0."""
    by_value: dict[float, list[str]] = {}
    for name in dict.fromkeys(names):
        if NUMBER.fullmatch(name):
            by_value.setdefault(float(name), []).append(name)
    return {name: min(same, key=len) for same in by_value.values() if len(same) > 1 for name in same}


def doubts(names: list[str]) -> list[str]:
    """What is odd in the names of classes, though it may be meant."""
    lines, by_case = [], dict[str, list[str]]()
    for name in names:
        by_case.setdefault(" ".join(name.casefold().split()), []).append(name)
    if alike := [same for same in by_case.values() if len(same) > 1]:
        lines.append(f"Warning: classes that differ in case or spaces alone: {printable(' and '.join(alike[0]))}")
    for mark in "|;,":
        joined = [name for name in names if mark in name]
        if len(joined) > 1 and len({part.strip() for name in names for part in name.split(mark)}) < len(names):
            lines.append(f"Warning: classes such as {printable(joined[0])[:60]} may be several (label_separator='{mark}')")
    if len(names) > 20 and all(map(NUMBER.fullmatch, names)) and (odd := [n for n in names if not float(n).is_integer()]):
        lines.append(
            f"Warning: the {len(names):,} classes are numbers such as {odd[0]}; if they are scores, these are no classes"
        )
    return lines
