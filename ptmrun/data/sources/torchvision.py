"""torchvision's own data sets, from a local root or its own download."""

import hashlib
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
from torchvision import datasets

from ptmrun.config.schema import Dataset
from ptmrun.data.sources import Part, Source
from ptmrun.errors import UserError

CLASSES = {
    "mnist": datasets.MNIST,
    "fashion_mnist": datasets.FashionMNIST,
    "cifar10": datasets.CIFAR10,
    "cifar100": datasets.CIFAR100,
}


def read(options: Dataset) -> Source:
    kind = CLASSES[options.name]
    root = Path(options.root or "data")
    parts = {name: part(kind, root, name == "train", options) for name in ("train", "test")}
    digest = hashlib.sha256()
    for p in parts.values():
        digest.update(np.ascontiguousarray(p.images).data)
        digest.update(np.ascontiguousarray(p.labels).data)
    return Source(parts, [str(c) for c in kind(root, download=False).classes], digest.hexdigest(), [])


def part(kind: Any, root: Path, train: bool, options: Dataset) -> Part:
    try:  # what is there is taken as it is, so a repacked copy does not lead to the network
        data = kind(root, train=train, download=False)
    except RuntimeError as error:
        if "not found" not in str(error):
            raise UserError(f"dataset.root={root}: the files of {kind.__name__} cannot be read: {error}") from None
        data = fetch(kind, root, train, options)
    images = data.data if isinstance(data.data, np.ndarray) else data.data.numpy()
    return Part(images, np.asarray(data.targets, dtype=np.int64))


def fetch(kind: Any, root: Path, train: bool, options: Dataset) -> Any:
    where = f"dataset.root={root}: {kind.__name__} is not there (expected {root / kind.__name__}/raw)"
    if kind.__name__.startswith("CIFAR"):
        where = f"dataset.root={root}: {kind.__name__} is not there (expected {root / kind.base_folder})"
    if not getattr(options, "download", False):
        raise UserError(f"{where}; point dataset.root at it or set dataset.download=true")
    try:
        return kind(root, train=train, download=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"{where} and the download failed ({error}); point dataset.root at a copy") from None
