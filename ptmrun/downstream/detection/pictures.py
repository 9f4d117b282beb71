"""What is drawn of found boxes."""

from typing import Any

import numpy as np
from torch import Tensor

from ptmrun.data.modality import Picture
from ptmrun.downstream.detection import average_precision as ap
from ptmrun.downstream.detection.merge import of_images
from ptmrun.downstream.detection.split import BoxedSplit

SHOWN = 5  # images of the best, and of the worst
MOST_CURVES = 8  # classes with most boxes


def pictures(predictions: dict[str, Tensor], split: BoxedSplit, classes: list[str], processor: Any) -> list[Picture]:
    """The best and the worst test images by F1 at the best threshold, of equal ones those with most boxes; precision-recall
    curves."""
    pairs = of_images(predictions, split)
    found = ap.matches(pairs, len(classes))
    threshold, _ = ap.best_threshold(found)
    f1 = ap.image_f1(found, threshold)
    order = np.lexsort((-found.positives.sum(1), -f1))
    chosen = list(dict.fromkeys([*order[:SHOWN].tolist(), *order[-SHOWN:].tolist()]))
    images = processor.back(processor(next(split.batches([split.rows.new_tensor(chosen)]))))
    shown = []
    for i in chosen:
        guess, truth = pairs[i]
        sure = guess.scores >= threshold
        right = [(box, classes[c], passed) for box, c, passed in zip(*truth, strict=True)]
        guessed = [(box, f"{classes[c]} {s:.2f}") for box, s, c in zip(*(x[sure] for x in guess), strict=True)]
        shown.append((right, guessed, f"F1 {f1[i]:.2f}"))
    curves = {}
    counts = found.positives.sum(0)
    at_half = ap.by_class(found)
    for c in sorted(at_half, key=lambda c: -counts[c])[:MOST_CURVES]:
        recall, precision = ap.curve(found.hits[found.classes == c], int(counts[c]))
        curves[f"{classes[c]}: AP50 {at_half[c]:.2f} ({counts[c]:,} boxes)"] = (recall, precision)
    return [Picture("boxes", ("boxes", images, shown)), Picture("precision_recall", ("precision_recall", curves))]
