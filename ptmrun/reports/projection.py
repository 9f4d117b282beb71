"""Features in two dimensions, to look at."""

import importlib.util

import numpy as np

from ptmrun import rng
from ptmrun.errors import UserError


def library(kind: str) -> None:
    """Raises UserError when what `evaluate.map=<kind>` needs is not installed."""
    if kind == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("evaluate.map=umap: needs umap-learn; install it with: pip install 'ptmrun[umap]', or choose pca")


def plane(features: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Features [N, D], N at least 3 -> (points [N, 2], titles of the two axes), by scikit-learn's PCA or by umap-learn."""
    if kind == "pca":
        from sklearn.decomposition import PCA

        model = PCA(2, svd_solver="full")
        points = model.fit_transform(features)
        return points, [f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(model.explained_variance_ratio_)]
    library(kind)
    from umap import UMAP

    state = rng.key(seed, "umap") % 2**32
    model = UMAP(n_neighbors=min(15, len(features) - 1), init="pca", random_state=state, n_jobs=1)
    return model.fit_transform(features), ["UMAP 1", "UMAP 2"]
