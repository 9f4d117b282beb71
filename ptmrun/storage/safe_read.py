"""Files of run folders, which strangers may have made: read as plain data, of bounded size, and never waiting for a FIFO."""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import yaml

from ptmrun.errors import UserError

MOST = 2**26  # bytes of a JSON file
LINE = 2**20  # bytes of a line of a file of JSON lines
BLOCK = 2**16
MOST_YAML = 2**17  # the parser is slow: about a second
DEEPEST = 20  # levels of nesting; ptmrun writes at most 6
SPOILT = (
    "has changed since ptmrun wrote it (its SHA-256 is another); put a sound copy back, or delete it: `ptmrun resume` makes "
    "again what a run that is not done lacks"
)


def read(path: Path, most: int = MOST) -> bytes:
    """The bytes of a regular file. Raises UserError for a link, a FIFO, a device, a folder, and for more than `most` bytes."""
    try:
        with opened(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise UserError(f"{path}: {size:,} bytes, more than the {most:,} that such a file may have; refused")
            return file.read(min(size + 1, most))  # a buffer of `most` may be more than there is memory for
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def opened(path: Path, mode: str = "rb") -> BinaryIO:
    """A regular file. Raises UserError for a link, a FIFO, a device or a folder, OSError for one that cannot be opened."""
    access = os.O_RDWR if "+" in mode else os.O_RDONLY
    number = os.open(path, access | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # opening a FIFO would wait for its writer
    if not stat.S_ISREG(kind := os.fstat(number).st_mode):
        os.close(number)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise UserError(f"{path}: not a regular file; refused")
    return cast(BinaryIO, os.fdopen(number, mode))


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the whole lines of a regular file of any size, the first one 1, without their ends. Raises UserError for
    what is no regular file, and for a line of more than LINE bytes."""
    try:
        with opened(path) as file:
            number = 0
            while (line := file.readline(LINE)).endswith(b"\n"):
                number += 1
                yield number, line[:-1]
            if len(line) == LINE:
                raise UserError(f"{path}: line {number + 1} has more than the {LINE:,} bytes that a line may have; refused")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def lines_from_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(where it begins, line) of the lines of a file from the last to the first, without their ends; before them what follows the
    last end of a line, mostly nothing. Raises ValueError for a line of more than LINE bytes."""
    end, rest = file.seek(0, os.SEEK_END), b""
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        block = file.read(end - start) + rest
        rest, *whole = block.split(b"\n")
        if len(rest) > LINE:
            raise ValueError(f"a line of more than {LINE:,} bytes")
        begin = start + len(block)
        for line in reversed(whole):
            begin -= len(line)
            yield begin, line
            begin -= 1
        end = start
    yield 0, rest


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


class PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without repeated keys and keys that are no text; libyaml's is many times as fast."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or key.value in seen:
                wrong = f"the key {key.value} twice" if key.value in seen else "a key that is no text"
                raise yaml.YAMLError(f"{wrong} in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def refuse_more_than_plain(content: str) -> None:
    """Raises YAMLError for tags and aliases (a few lines of them can stand for terabytes), ValueError for deep nesting, before
    anything is made of them."""
    depth = 0
    for event in yaml.parse(content, Loader=PlainLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            kind = "a tag" if getattr(event, "tag", None) else "an anchor or alias"
            raise yaml.YAMLError(f"{kind} in line {event.start_mark.line + 1}; a saved file has plain values only")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")


def plain_yaml(path: Path) -> Any:
    """A YAML file as plain data. Raises UserError when it is none, or holds more than plain values."""
    content: Any = text(path, MOST_YAML)
    try:
        refuse_more_than_plain(content)
        content = PlainLoader(content).get_single_data()
        if large(content):
            raise ValueError("a number of more than 1,000 digits")
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:  # safe constructors raise them all
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a plain YAML file: {problem}") from None
    return content


def large(value: Any) -> bool:
    """Whether nested plain values, not too deep, hold a whole number that Python does not write in digits (0xfff...)."""
    if isinstance(value, dict | list):
        return any(map(large, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and value.bit_length() > 3000


def shallow(value: Any) -> bool:
    """Nested at most DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [c for v in level if isinstance(v, (dict, list)) for c in (v.values() if isinstance(v, dict) else v)]
        if not level:
            return True
    return False
