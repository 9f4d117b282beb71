"""Checkpoints are safetensors files with a JSON header and a digest: written atomically, loaded as data, checked, hashed."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ptmrun.errors import NO_MEMORY, UserError
from ptmrun.storage.files import remove
from ptmrun.storage.safe_read import SPOILT, from_json

SHARDS = "DCP_SHARDING_INFO"  # where torch.distributed.checkpoint looks for the places of parts
HEADER = {"format", "state", "sha256", SHARDS}  # entries of the metadata


def save(
    path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None, rows: Mapping[str, int] | None = None
) -> None:
    """Writes tensors and a JSON-able state; after a crash at any moment `path` holds the old content or the new one. rows: of
    parts of tensors, where in these they begin."""
    check_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    remove(part)  # a left-over, or a link that leads elsewhere
    try:
        plain = unshared({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        header = {"format": "pt", "state": json.dumps(state or {})}
        if rows is not None:
            header[SHARDS] = json.dumps(
                {k: {"saved_offsets": [rows.get(k, 0), *[0] * v.ndim][: v.ndim]} for k, v in plain.items()}
            )
        save_file(plain, part, metadata={**header, "sha256": digest_of(plain, header)})
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be written: {reason}; what was there before is intact") from None


def check_name(path: Path) -> None:
    """Raises UserError for a path that safetensors cannot open."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: this name is not UTF-8, which the safetensors library needs; rename the folder, or work inside of it (cd)"
        ) from None


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With copies of those that share memory with one before them (weights of two layers that are the same): safetensors
    takes each only once."""
    seen: set[int] = set()
    copies = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        copies[name] = value.clone() if place in seen else value
        seen.add(place)
    return copies


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state). Raises UserError when the file is missing, no safetensors file, or not as `save` wrote it; it is never
    unpickled. Files of other makers and of older versions carry no digest."""
    check_name(path)
    if not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: {'not a regular file; refused' if os.path.lexists(path) else 'missing'}")
    if path.stat().st_size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise UserError(f"{path}: larger than this machine's memory; refused")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            header = dict(file.metadata() or {})
        written = header.pop("sha256", None)
        if (written and written != digest_of(tensors, header)) or ("state" in header and header.keys() - HEADER):
            raise UserError(f"{path}: {SPOILT}")
        state = from_json(header.get("state", "{}"))
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        if NO_MEMORY.search(str(error)):
            raise MemoryError(f"{path}: {error}") from None
        raise UserError(f"{path}: not a whole safetensors file ({str(error)[:80]}); refused") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: its header holds no state; refused")
    return tensors, state


def rows(path: Path) -> dict[str, int]:
    """Where the parts of tensors begin that `save` was given with their rows; read after `load`, which checks them."""
    with safe_open(path, framework="pt") as file:
        places = from_json((file.metadata() or {}).get(SHARDS, "{}"))
        return {name: (places[name]["saved_offsets"] or [0])[0] for name in file.keys()}  # noqa: SIM118 (no mapping)


def digest_of(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Of tensors and of the header that is saved with them."""
    return hashlib.sha256(f"{sha256(tensors)} {sorted(header.items())}".encode()).hexdigest()


def into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path, sound: bool = True) -> None:
    """Loads every tensor of a module. Raises UserError that names what is missing, unexpected, misshapen or not finite."""
    wanted = module.state_dict()
    problems = [f"missing {k}" for k in wanted if k not in tensors] + [f"unexpected {k}" for k in tensors if k not in wanted]
    problems += [
        f"{k} is {list(tensors[k].shape)}, expected {list(v.shape)}"
        for k, v in wanted.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    problems += [
        f"{k} is {tensors[k].dtype}, expected {v.dtype}"
        for k, v in wanted.items()
        if k in tensors and tensors[k].is_floating_point() != v.is_floating_point()
    ]
    problems += [f"{k} holds NaN or Infinity" for k, v in tensors.items() if sound and not finite(v)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: does not fit the model: {'; '.join(problems[:3])}{more}")
    module.load_state_dict(dict(tensors))


def finite(tensor: Tensor) -> bool:
    """No NaN and no Infinity, also as float32."""
    return bool(tensor.float().isfinite().all())


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values, independent of order and file layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
