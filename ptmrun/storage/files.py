"""Files that are replaced as a whole, locks, new folders, and the cache folder."""

import contextlib
import ctypes
import fcntl
import math
import os
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ptmrun.errors import UserError

NEW = re.compile(r"\.[0-9a-f]{32}(\.new|\.npy|-\d+\.corpus|-\d+\.json)")  # being written; the last three by earlier versions
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl
LEFT_OVER = 86_400  # seconds without a change, after which nobody writes it any more


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replaces `path` as a whole: after a crash at any moment it holds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    remove(part)  # a left-over, or a link that leads elsewhere
    try:
        with open(part, "xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Whatever stands there: a file, a link (not what it leads to), a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path, refusal: str) -> Iterator[None]:
    """A lock file that one process can hold; for others it is UserError(refusal). The system frees it when the process dies."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(refusal) from None
        yield


def end_with_parent(worker: int = 0) -> None:
    """A process that was forked ends when its parent does, even by kill -9: it would hold its locks on (under Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)


def new_folder(root: Path, stem: str) -> Path:
    """Makes root/stem, or root/stem-2 ... when that is taken: a folder that was not there before."""
    root.mkdir(parents=True, exist_ok=True)
    folder, number = root / stem, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = root / f"{stem}-{number}"


def cache_folder() -> Path:
    """`$PTMRUN_CACHE`, or ptmrun in the user's cache folder."""
    return Path(os.environ.get("PTMRUN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ptmrun").expanduser()


def new_entry(path: Path) -> Path:
    """Where to write a file or folder of the cache folder, which then replaces `path` as a whole: a name beside it that no other
    process has, of another machine or container neither. Takes away what processes that were killed were writing a day ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*"):
        with contextlib.suppress(OSError):
            changed = max(p.lstat().st_mtime for p in (left, *left.glob("*"))) if NEW.fullmatch(left.name) else math.inf
            if time.time() - changed > LEFT_OVER:
                remove(left)
    return path.with_name(f".{uuid.uuid4().hex}.new")


def size_of(folder: Path | str) -> int:
    """Bytes of all files in a folder; links are not followed, and what vanishes meanwhile or may not be read does not count."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for item in entries:
            with contextlib.suppress(OSError):
                if item.is_dir(follow_symlinks=False):
                    total += size_of(item.path)
                elif item.is_file(follow_symlinks=False):
                    total += item.stat(follow_symlinks=False).st_size
    return total
