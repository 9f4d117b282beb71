"""SHA-256 of files: noted when they are written, compared when they are read again."""

import hashlib
import re
from pathlib import Path

from ptmrun.errors import UserError
from ptmrun.storage.files import write_atomic
from ptmrun.storage.safe_read import SPOILT, text

SUMS = "SHA256SUMS"  # as sha256sum writes and checks it


def of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path) -> None:
    """Writes SUMS of all files in a folder."""
    lines = [f"{of_file(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]
    write_atomic(folder / SUMS, "".join(lines))


def check(folder: Path) -> None:
    """Raises UserError when a file that SUMS names is another. Older versions wrote none."""
    if not (folder / SUMS).exists():
        return
    for line in text(folder / SUMS, 2**16).splitlines():
        match = re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line)
        path = folder / (match[2] if match else SUMS)
        if not match or path.is_symlink() or not path.is_file() or of_file(path) != match[1]:
            raise UserError(f"{path}: {SPOILT}")
