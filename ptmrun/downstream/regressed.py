"""A floor for images with texts that needs no network: pixels regressed to the TF-IDF of captions, by ridge regression."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from ptmrun.data.text import tf_idf

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of the penalty, as shares of the mean variance of a pixel times the number of images
HELD = 8  # one in so many training images says which of them is best
MOST = 4096  # words


class Regressed:
    """Fitted to training images: `pixels` [N, D], and their captions, a list for each. A text becomes its TF-IDF, an image what
    is predicted of it."""

    def __init__(self, pixels: np.ndarray, captions: list[list[str]]):
        self.words = tf_idf.words([text for own in captions for text in own], max_features=MOST)
        wanted = np.concatenate([self.texts(own).mean(0, keepdims=True) for own in captions])
        held = np.arange(len(pixels)) % HELD == HELD - 1
        if held.any():
            part = Ridge(pixels[~held], wanted[~held])
            best = max(STRENGTHS, key=lambda s: likeness(part.fitted(s)(pixels[held]), wanted[held]))
        self.images = Ridge(pixels, wanted).fitted(best if held.any() else STRENGTHS[-1])

    def texts(self, texts: list[str]) -> np.ndarray:
        """float32 [n, words]"""
        return self.words.transform(texts).toarray().astype(np.float32)


class Ridge:
    """Ridge regression from x [N, D] to y [N, W] for several penalties, by the smaller of its two systems of equations."""

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.mean, self.aim = x.mean(0), y.mean(0)
        self.x, self.y = (x - self.mean).astype(np.float64), y - self.aim
        self.dual = len(x) < x.shape[1]
        self.square = self.x @ self.x.T if self.dual else self.x.T @ self.x

    def fitted(self, strength: float) -> Callable[[np.ndarray], np.ndarray]:
        """[n, D] -> [n, W]; strength: of STRENGTHS."""
        square, places = self.square.copy(), np.diag_indices_from(self.square)
        square[places] += strength * np.trace(square) / self.x.shape[1] + 1e-6
        factor = scipy.linalg.cho_factor(square, overwrite_a=True, check_finite=False)
        if self.dual:
            weights = self.x.T @ scipy.linalg.cho_solve(factor, self.y)
        else:
            weights = scipy.linalg.cho_solve(factor, self.x.T @ self.y)
        return lambda x: ((x - self.mean) @ weights + self.aim).astype(np.float32)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """How often a row of `a` [n, W] is nearest, by its cosine, to that of `b` which is its own: one of the ten nearest."""
    a, b = (x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12) for x in (a, b))
    near: Any = a @ b.T
    return float(((near > np.diag(near)[:, None]).sum(1) < 10).mean())
