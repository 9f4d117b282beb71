"""From the probabilities of each frame to a sequence: connectionist temporal classification (Graves et al. 2006); 0 is the
blank."""

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

BLANK = 0
UNLIKELY = -9.0  # log-probability below which a character of a frame is not tried


def needed(ids: np.ndarray) -> int:
    """Frames that a sequence wants: one a character, and one between equal ones."""
    return len(ids) + int((ids[1:] == ids[:-1]).sum())


def greedy(log_probabilities: Tensor) -> list[int]:
    """The likeliest character of each frame [t, V]; repeated ones are one, and blanks are left out."""
    path = torch.unique_consecutive(log_probabilities.argmax(1))
    return path[path != BLANK].tolist()


def prefix_beam(log_probabilities: Tensor, beams: int) -> list[int]:
    """The likeliest sequence, over all of its alignments to the frames [t, V], that a search with so many prefixes has met
    (Hannun et al. 2014, arXiv:1408.2873, without a language model)."""
    best: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}  # ending with a blank, and not
    for row in log_probabilities.double().numpy():
        after: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-np.inf, -np.inf])
        tried = [c for c in np.flatnonzero(row > UNLIKELY).tolist() if c != BLANK]
        for prefix, (blank, other) in best.items():
            whole = np.logaddexp(blank, other)
            same = after[prefix]
            same[0] = np.logaddexp(same[0], whole + row[BLANK])
            if prefix:
                same[1] = np.logaddexp(same[1], other + row[prefix[-1]])
            for c in tried:
                longer = after[(*prefix, c)]
                longer[1] = np.logaddexp(longer[1], (blank if prefix and c == prefix[-1] else whole) + row[c])
        ranked = sorted(after.items(), key=lambda item: -np.logaddexp(item[1][0], item[1][1]))
        best = {prefix: (float(ends[0]), float(ends[1])) for prefix, ends in ranked[:beams]}
    return list(next(iter(best)))
