"""What a result depends on beside its config: versions, code, hardware."""

import hashlib
import platform
import shlex
import subprocess
from importlib import metadata
from typing import Any

import ptmrun
from ptmrun.config.schema import CONF, PACKAGE
from ptmrun.training import device

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
        "hardware": device.hardware(),
        "parents": [],
    }


def code_hash() -> str:
    """A hash of the package's Python files and of conf/."""
    digest = hashlib.sha256()
    for root, pattern in ((PACKAGE, "*.py"), (CONF, "*.yaml")):
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
