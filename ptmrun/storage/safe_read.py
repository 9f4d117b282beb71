"""Files of run folders, which strangers may have made: read as plain data, of bounded size, and never waiting for a FIFO."""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from ptmrun.errors import UserError

MOST = 2**26  # bytes of a JSON file
MOST_YAML = 2**17  # the parser is slow: about a second
DEEPEST = 20  # levels of nesting; ptmrun writes at most 6


def read(path: Path, most: int = MOST) -> bytes:
    """The bytes of a regular file. Raises UserError for a link, a FIFO, a device, a folder, and for more than `most` bytes."""
    try:  # O_NONBLOCK: opening a FIFO would wait for its writer
        with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK | os.O_NOFOLLOW)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: not a regular file; refused")
            if status.st_size > most:
                raise UserError(f"{path}: {status.st_size:,} bytes, more than the {most:,} that such a file may have; refused")
            return file.read(most)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def text(path: Path, most: int = MOST) -> str:
    try:
        return read(path, most).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def plain_json(path: Path) -> Any:
    """A JSON file. Raises UserError when it is none, holds NaN or Infinity, or is nested deeper than DEEPEST."""
    try:
        return from_json(read(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None


def from_json(data: bytes | str) -> Any:
    """Raises ValueError or RecursionError."""

    def finite(number: str) -> float:
        if not math.isfinite(float(number)):
            raise ValueError(f"{number} is not JSON")
        return float(number)

    content = json.loads(data, parse_constant=finite, parse_float=finite)
    if not shallow(content):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return content


class PlainLoader(yaml.SafeLoader):
    """YAML without tags, aliases (a few lines of them can stand for terabytes), repeated keys and keys that are no text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor or event.tag:
            kind = "a tag" if getattr(event, "tag", None) else "an anchor or alias"
            raise yaml.YAMLError(f"{kind} in line {event.start_mark.line + 1}; a saved file has plain values only")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or key.value in seen:
                wrong = f"the key {key.value} twice" if key.value in seen else "a key that is no text"
                raise yaml.YAMLError(f"{wrong} in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def plain_yaml(path: Path) -> Any:
    """A YAML file as plain data. Raises UserError when it is none, or holds more than plain values (see PlainLoader)."""
    content = text(path, MOST_YAML)
    try:
        loader = PlainLoader(content)
        content = loader.get_single_data()
        if not shallow(content):
            raise ValueError(f"nested deeper than {DEEPEST} levels")
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # safe constructors raise them all
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a plain YAML file: {problem}") from None
    return content


def shallow(value: Any) -> bool:
    """Nested at most DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [c for v in level if isinstance(v, (dict, list)) for c in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return True
    return False
