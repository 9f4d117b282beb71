"""What `init` names: nothing, published weights, a library's file or folder, a hub id, or a run. Nothing here imports torch."""

import re
from pathlib import Path
from typing import Literal

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".tar")  # of weights; a file that is there may have any
Origin = Literal["random", "pretrained", "file", "hub", "run"]
OUTSIDE = ("pretrained", "file", "hub")  # those of weights that were not trained here
HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


def origin(init: str) -> Origin:
    """A run, unless it is a word, a file, a folder with a library's config.json and no run in it, or of the form
    owner/name where no folder `owner` is."""
    if init == "random":
        return "random"
    if init == "pretrained":
        return "pretrained"
    path = Path(init)
    if path.is_file() or (path.suffix.lower() in SUFFIXES and not path.is_dir()):
        return "file"
    if HUB.fullmatch(init) and not path.parent.exists():
        return "hub"
    return "file" if (path / "config.json").is_file() and not (path / "manifest.json").exists() else "run"
