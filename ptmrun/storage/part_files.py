"""A checkpoint in parts: a folder with a safetensors file of each process, and one file that names it, which is replaced when all
of them are written.

Each tensor is taken apart along its first dimension, as `torch.chunk` does; a part says where it begins in the way of
torch.distributed.checkpoint, whose HuggingFaceStorageReader reads such a folder.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrun.errors import UserError
from ptmrun.storage import tensor_files

FOLDER = re.compile(r"[\w.-]+\.parts-(\d+)")
MOST = 2**16  # parts


def new_folder(file: Path) -> str:
    """The name of the next folder of a checkpoint's parts."""
    numbers = [int(match[1]) for folder in folders(file) if (match := FOLDER.fullmatch(folder.name))]
    return f"{file.stem}.parts-{max(numbers, default=0) + 1}"


def folders(file: Path) -> list[Path]:
    return list(file.parent.glob(f"{file.stem}.parts-*"))


def part(folder: Path, rank: int, size: int) -> Path:
    return folder / f"part-{rank + 1:05}-of-{size:05}.safetensors"


def commit(file: Path, folder: str, size: int, state: Mapping[str, Any]) -> None:
    """Makes the parts in a folder, all of them written, the checkpoint, and takes those before away."""
    tensor_files.save(file, {}, {**state, "parts": {"folder": folder, "of": size}})
    remove(file, but=folder)


def remove(file: Path, but: str = "") -> None:
    """Takes folders with parts of a checkpoint away."""
    for folder in folders(file):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def discard(file: Path) -> None:
    """Takes a checkpoint away, in parts or in one file."""
    file.unlink(missing_ok=True)
    remove(file)


def named(file: Path, state: Mapping[str, Any]) -> list[Path]:
    """The files with the parts of a checkpoint whose state this is; none where it is in one file. Raises UserError."""
    if "parts" not in state:
        return []
    match state["parts"]:
        case {"folder": str(name), "of": int(size)} if FOLDER.fullmatch(name) and 1 <= size <= MOST:
            folder = file.with_name(name)
        case _:
            raise UserError(f"{file}: what it says of its parts is not as ptmrun writes it; refused")
    if folder.is_symlink():
        raise UserError(f"{folder}: a link; refused")
    parts = [part(folder, rank, size) for rank in range(size)]
    if missing := [path for path in parts if not path.exists()]:
        raise UserError(f"{missing[0]}: missing; put it back, or delete {file}, and this training begins anew")
    return parts


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of one part, and the row of the whole one at which each begins."""
    tensors, _ = tensor_files.load(path)
    return tensors, tensor_files.rows(path)


def load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint in parts or in one file, whole. Raises UserError as tensor_files.load does."""
    tensors, state = tensor_files.load(file)
    pieces: dict[str, list[Tensor]] = {}
    for place in named(file, state):
        for name, piece in tensor_files.load(place)[0].items():
            pieces.setdefault(name, []).append(piece)
    state.pop("parts", None)
    return tensors | {name: torch.cat(each) if len(each) > 1 else each[0] for name, each in pieces.items()}, state
