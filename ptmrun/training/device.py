"""Where a run computes and how precisely. Choices made by measuring are stored in the saved config, so they are made once."""

import contextlib
import ctypes
import fcntl
import json
import os
import platform
import statistics
import time
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from ptmrun.config import parsing, schema
from ptmrun.errors import UserError
from ptmrun.runs.provenance import cores, hardware
from ptmrun.storage.files import cache_folder, write_atomic
from ptmrun.storage.safe_read import plain_json

EMULATED = 0.2  # below this bfloat16 is not a matter of how busy the machine is


def available(name: str) -> bool:
    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(name, True)


def find(name: str) -> torch.device:
    """Raises UserError when the device is not there."""
    there = {name: available(name) for name in ("cuda", "mps", "cpu")}
    if name == "auto":
        name = next(k for k, ok in there.items() if ok)
    if not there[name]:
        raise UserError(f"device={name}: not available here; there is: {', '.join(k for k, ok in there.items() if ok)}")
    return torch.device(name)


def check_processes(name: str, processes: int) -> None:
    """Each process on this machine has a GPU of its own, which is from now on that of this one. Raises UserError where there are
    too few."""
    device, here = find(name), int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise UserError(f"device.processes={processes}: each takes a GPU, and this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "mps" and processes > 1:
        raise UserError(f"device.processes={processes}: device=mps is one GPU, which one process uses")


def bf16_speed(device: torch.device, size: int = 768) -> float:
    """How many times as fast as float32 a bfloat16 matrix product runs: the median of pairs, after two that warm up. Where
    bfloat16 is emulated, and each product takes a second, the first pair after those is enough."""
    operands = [torch.ones(size, size, dtype=kind, device=device) for kind in (torch.float32, torch.bfloat16)]
    ratios = []
    for _ in range(13):
        times = [time.perf_counter()]
        for a in operands:
            torch.sum(a @ a).item()
            times.append(time.perf_counter())
        ratios.append((times[1] - times[0]) / (times[2] - times[1]))
        if len(ratios) == 3 and ratios[2] < EMULATED:
            break
    return statistics.median(ratios[2:])


def known_bf16_speed(device: torch.device, threads: int) -> float:
    """The same, measured once for this machine: a busy moment must not make runs differ that are to be compared."""
    machine = hardware()
    key = f"{machine['gpu'] if device.type == 'cuda' else machine['cpu']}, {threads} threads, torch {torch.__version__}"
    file = cache_folder() / "bf16_speed.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_suffix(".lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known: Any = {}
            with contextlib.suppress(UserError):  # none yet, or cut short
                known = plain_json(file)
            known = known if isinstance(known, dict) else {}
            if not isinstance(known.get(key), float):
                known[key] = round(bf16_speed(device), 2)
                write_atomic(file, json.dumps(known, indent=2) + "\n")
    except OSError:  # a cache that cannot be written to
        return bf16_speed(device)
    return known[key]


def resolve(cfg: schema.Config) -> tuple[schema.Config, torch.device, list[str]]:
    """Replaces every `auto` of the device section and sets up PyTorch. Returns notes for the user on what was chosen."""
    device = find(cfg.device.name)
    threads = cores() if cfg.device.threads == "auto" else cfg.device.threads
    workers = cores() if cfg.device.workers == "auto" else cfg.device.workers
    setup(threads)
    notes, precision = [], cfg.device.precision
    if precision != "fp32":
        ratio = known_bf16_speed(device, threads)
        measured = f"bf16 matrix products measured {ratio:.2f} times as fast as fp32 here"
        if precision == "auto":
            precision = "bf16" if ratio > 1.4 else "fp32"
            notes.append(f"device.precision={precision}: {measured}")
        elif ratio < 1:
            notes.append(f"Warning: device.precision=bf16: {measured}; auto takes fp32")
    changes = {"name": device.type, "precision": precision, "threads": threads, "workers": workers}
    return parsing.replace(cfg, **{f"device__{k}": v for k, v in changes.items()}), device, notes


def setup(threads: int) -> None:
    """Threads, deterministic kernels, and an allocator that keeps its memory."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # NumPy's and SciPy's products too: on more threads their sums come in another order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # for catching bugs, and slow
    if platform.libc_ver()[0] == "glibc":  # big tensors stay mapped between steps instead of being faulted in anew
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def autocast(device: torch.device, precision: str) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def attention(device: torch.device, precision: str) -> str:
    """transformers' attention: on the CPU, bfloat16's fused attention is slower than the plain one."""
    return "eager" if device.type == "cpu" and precision == "bf16" else "sdpa"
