"""What a result depends on beside its config: versions, code, hardware."""

import hashlib
import os
import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import ptmrun
from ptmrun.config.choices import PACKAGE, folders, packages

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "scikit-learn", "hydra-core", "datasets")


def manifest(argv: list[str]) -> dict[str, Any]:
    """The first entries of manifest.json."""
    return {
        "status": "running",
        "command": shlex.join(["ptmrun", *argv]),
        "ptmrun": ptmrun.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "code_sha256": code_hash(),
        "git": git(),
        "hardware": hardware(),
        "parents": [],
    }


def code_hash() -> str:
    """A hash of the Python and YAML files of the package and of plug-ins; not of the user's own choices, which a config holds."""
    digest = hashlib.sha256()
    roots = [(place, "*.py") for place in packages().values()] + [(folders()[name], "*.yaml") for name in packages()]
    for root, pattern in roots:
        for path in sorted(root.rglob(pattern)):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def git() -> dict[str, Any] | None:
    """Commit and whether the checkout has changes; None outside of the project's own checkout."""
    if not (PACKAGE.parent / ".git").exists():
        return None

    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(PACKAGE.parent), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and accelerator, for the manifest."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": cores(), "memory_gb": round(memory, 1), "gpu": gpu, "system": platform.system()}
