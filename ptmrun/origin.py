"""What `init` names: nothing, published weights, a library's file or folder, or a run. Nothing here imports torch."""

from pathlib import Path
from typing import Literal

SUFFIXES = (".pth", ".pt", ".safetensors")

Origin = Literal["random", "pretrained", "file", "run"]


def origin(init: str) -> Origin:
    """A run, unless it is a word, a file of weights, or a folder with a library's config.json and no run in it."""
    if init == "random":
        return "random"
    if init == "pretrained":
        return "pretrained"
    path = Path(init)
    if path.suffix in SUFFIXES and not path.is_dir():
        return "file"
    return "file" if (path / "config.json").is_file() and not (path / "manifest.json").exists() else "run"
