"""Average precision at one overlap, as COCO counts it (see its cocoeval.py), from which images can be left out cheaply: by that
the noise of the test images is known. All other numbers come from torchmetrics."""

from dataclasses import dataclass, replace

import numpy as np

from ptmrun.downstream.detection.merge import Found, Truth

IOU = 0.5  # intersection over union, from which a box is found
LIMIT = 100  # boxes of a class that count in an image
RECALLS = np.linspace(0, 1, 101)  # at which precision is averaged
BLOCKS = 200  # of images, that are left out one after the other


@dataclass(frozen=True)
class Matches:
    """What was found in all images, the surest first, and how many boxes there are. scores, hits (bool), classes, images [D];
    positives [N, classes]: boxes of each image."""

    scores: np.ndarray
    hits: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    positives: np.ndarray

    def of(self, chosen: np.ndarray) -> "Matches":
        """Those found that are chosen, [D] bool."""
        return replace(
            self, scores=self.scores[chosen], hits=self.hits[chosen], classes=self.classes[chosen], images=self.images[chosen]
        )


def matches(pairs: list[tuple[Found, Truth]], classes: int, limit: int | None = LIMIT) -> Matches:
    """Each found box has the box of its class that it overlaps most and that no surer one has. What lies in an ignored box, and
    has none of its own, does not count."""
    parts, positives = [], np.zeros((len(pairs), classes), dtype=np.int64)
    for image, (found, truth) in enumerate(pairs):
        positives[image] = np.bincount(truth.classes[~truth.ignored], minlength=classes)
        for kind in np.unique(found.classes):
            order = np.nonzero(found.classes == kind)[0]
            order = order[np.argsort(-found.scores[order], kind="stable")][:limit]
            own = truth.classes == kind
            state = matched(found.corners[order], truth.corners[own], truth.ignored[own])
            counted = state >= 0
            parts.append((found.scores[order][counted], state[counted] > 0, np.full(counted.sum(), kind)))
            parts[-1] = (*parts[-1], np.full(counted.sum(), image))  # type: ignore[assignment]
    if not parts:
        empty = np.zeros(0)
        return Matches(empty, empty.astype(bool), empty.astype(int), empty.astype(int), positives)
    scores, hits, kinds, images = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return Matches(scores[order], hits[order], kinds[order], images[order], positives)


def matched(found: np.ndarray, corners: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """1 of what is right, 0 of what is wrong, -1 of what does not count, [n]; found: of a class, the surest first."""
    state = np.zeros(len(found), dtype=np.int64)
    if not len(corners):
        return state
    shared = overlap(found, corners, ignored)
    free = np.ones(len(corners), dtype=bool)
    for i, row in enumerate(shared):
        best = np.where(free & ~ignored & (row >= IOU), row, -1.0)
        if best.max() >= 0:
            free[best.argmax()] = False
            state[i] = 1
        elif (ignored & (row >= IOU)).any():
            state[i] = -1
    return state


def overlap(found: np.ndarray, corners: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Intersection over union [n, m]; with what is ignored, over the found box alone."""
    low, high = np.maximum(found[:, None, :2], corners[:, :2]), np.minimum(found[:, None, 2:], corners[:, 2:])
    both = (high - low).clip(0).prod(2).astype(np.float64)
    own, other = ((x[:, 2:] - x[:, :2]).prod(1).astype(np.float64) for x in (found, corners))
    return both / np.maximum(np.where(ignored, own[:, None], own[:, None] + other - both), 1e-12)


def curve(hits: np.ndarray, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """(recall, precision) after each found box, [D]; hits: the surest first."""
    right = hits.cumsum()
    return right / positives, right / np.arange(1, len(hits) + 1)


def average(hits: np.ndarray, positives: int) -> float:
    """Precision at RECALLS, which is the best at that recall or a higher one."""
    if not len(hits):
        return 0.0
    recall, precision = curve(hits, positives)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return float(np.where(places < len(recall), precision[np.minimum(places, len(recall) - 1)], 0.0).mean())


def by_class(found: Matches, left_out: np.ndarray | None = None) -> dict[int, float]:
    """Average precision of each class that there is, without some images, [N] bool."""
    positives = found.positives if left_out is None else found.positives[~left_out]
    chosen = None if left_out is None else ~left_out[found.images]
    counts = positives.sum(0)
    return {
        int(c): average(found.hits[(found.classes == c) if chosen is None else (found.classes == c) & chosen], int(counts[c]))
        for c in np.nonzero(counts)[0]
    }


def mean(values: dict[int, float]) -> float:
    """Over the classes; 0 where there is none."""
    return float(np.mean(list(values.values()))) if values else 0.0


def influences(found: Matches) -> np.ndarray:
    """What each image has to do with the mean average precision of all, [N]: the jackknife's pseudo-values (Tukey 1958), whose
    mean is about that precision and whose spread tells its noise; one may be below 0 or above 1. Many images are left out in
    blocks, and each stands for its block."""
    count = len(found.positives)
    whole = mean(by_class(found))
    blocks = min(count, BLOCKS)
    if blocks < 2:
        return np.full(count, whole)
    block = np.arange(count) * blocks // count
    values = np.array([mean(by_class(found, block == b)) for b in range(blocks)])
    apart = (blocks - 1) * (values.mean() - values)
    return whole + apart[block] * np.sqrt(count / blocks)


def best_threshold(found: Matches) -> tuple[float, float]:
    """(the score at which F1 over all images and classes is highest, that F1)"""
    total = int(found.positives.sum())
    if not len(found.hits) or not total:
        return 1.0, 0.0
    f1 = 2 * found.hits.cumsum() / (np.arange(1, len(found.hits) + 1) + total)
    place = int(f1.argmax())
    return float(found.scores[place]), float(f1[place])


def image_f1(found: Matches, threshold: float) -> np.ndarray:
    """F1 of each image [N] from a score on; 1 where there is nothing and nothing is found."""
    sure = found.of(found.scores >= threshold)
    count = len(found.positives)
    right, guessed = (np.bincount(sure.images[x], minlength=count) for x in (sure.hits, slice(None)))
    both = guessed + found.positives.sum(1)
    return np.where(both > 0, 2 * right / np.maximum(both, 1), 1.0)
