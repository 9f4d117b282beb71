"""How many steps a loop takes, and the learning rate at each of them."""

import math
from collections.abc import Callable

from ptmrun.config import schema
from ptmrun.config.schema import Loop

STAIRS = (0.3, 0.6, 0.9)
LEAST, PASSES = 300, 3  # steps of fine-tuning at least, and passes over the labels at least, where steps are auto


def lr_at(step: int, steps: int, loop: Loop) -> float:
    """Learning rate of step 0 ... steps-1: linear warm-up to `lr`, then cosine or linear to `min_lr`, or constant, or a staircase
    that falls to a tenth at each of STAIRS of the steps."""
    warm = round(loop.warmup * steps)
    if step < warm:
        return loop.lr * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    shape = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "staircase": 0.1 ** sum(step >= stair * steps for stair in STAIRS),
    }[loop.schedule]
    return loop.min_lr + (loop.lr - loop.min_lr) * shape


def decaying(lr: float, warm: int, begin: int, end: int) -> Callable[[int], float]:
    """Learning rate of a step: `warm` steps of linear warm-up to `lr`, constant, and from step `begin` on down to 0 at `end` as
    one minus the square root of the way (Hägele et al. 2024, arXiv:2405.18392)."""

    def rate(step: int) -> float:
        if step < warm:
            return lr * (step + 1) / warm
        return lr * (1 - math.sqrt((step + 1 - begin) / (end + 1 - begin))) if step >= begin else lr

    return rate


def passes(loop: Loop, samples: int) -> int:
    """Optimizer steps of PASSES over so many samples."""
    return math.ceil(PASSES * samples / min(loop.batch_size, samples))


def steps_of(loop: Loop, samples: int) -> int:
    """Optimizer steps of a loop over so many samples."""
    if loop.steps == "auto":
        return max(LEAST, passes(loop, samples))
    if loop.steps is not None:
        return loop.steps
    assert loop.epochs is not None
    return max(1, math.ceil(loop.epochs * samples / min(loop.batch_size, samples)))


def layer_decay_of(loop: Loop, samples: int) -> float:
    """How the rate falls from a block to the one below it, in a loop over so many samples: with auto lower blocks learn more
    slowly from few labels; with many that leaves too much as it was."""
    if loop.layer_decay != "auto":
        return loop.layer_decay
    return 1.0 if passes(loop, samples) > LEAST else schema.LAYER_DECAY
