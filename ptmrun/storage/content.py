"""Hashes of files' contents. A table in the cache folder saves hashing a file again while its size, its time of change and its
inode are the same."""

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ptmrun.storage.files import cache_folder

RECENT = 2_000_000_000  # nanoseconds in which a file can change again without another time of change
UNREADABLE = "unreadable"


def hashes(paths: Iterable[Path]) -> list[str]:
    """Of each file, in order; UNREADABLE where it cannot be read."""
    with contextlib.ExitStack() as stack:
        table = None
        with contextlib.suppress(OSError, sqlite3.Error):  # without a table all files are read
            file = cache_folder() / "contents.sqlite"
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                table = opened(file, stack)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # what stands there is none: cut short, or another file
                file.unlink()
                table = opened(file, stack)
        found = [of_file(path, table) for path in paths]
        with contextlib.suppress(sqlite3.Error):
            if table:
                table.commit()
        return found


def opened(file: Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    table = stack.enter_context(contextlib.closing(sqlite3.connect(file, timeout=30)))
    table.execute("create table if not exists contents (path blob primary key, state text, hash text)")
    return table


def of_file(path: Path, table: sqlite3.Connection | None) -> str:
    try:
        stat, name = path.stat(), str(path.absolute()).encode(errors="surrogateescape")
        state = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
        with contextlib.suppress(sqlite3.Error):
            row = table and table.execute("select hash from contents where path = ? and state = ?", (name, state)).fetchone()
            if row:
                return str(row[0])
        found = hashed(path)
    except OSError:
        return UNREADABLE
    if table and time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > RECENT:
        with contextlib.suppress(sqlite3.Error):
            table.execute("insert or replace into contents values (?, ?, ?)", (name, state, found))
    return found


def number(data: Any) -> int:
    """A number of 64 bits that only equal bytes share, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), signed=True) or 1


def hashed(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
