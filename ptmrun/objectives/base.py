"""What a pretraining objective is: a file of objectives/ with its `Objective(encoder, options)`, which owns its heads.

It takes its random numbers from `batch["rows"]` and knows no data set, loop, run folder or other objective.
"""

from typing import Any

from torch import Tensor

from ptmrun.loss import Learner


class Objective(Learner):
    """See Learner."""

    collapse_hints = "a lower pretrain.lr"  # what to try where features collapse
    fills = False  # it has `fill`
    draws = False  # an encoder that can draw learns to
    judged = False  # on held-out samples too, where the data have no corpus for that

    def alarm(self) -> str | None:
        """What speaks for a training that collapses, beside what probes of the features say; None when nothing does."""
        return None

    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """{title: images} that show what it makes of a few images; of sounds, hidden: which frames are, [B, t] bool; none where
        there is nothing to see."""
        return {}

    def fill(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens are hidden, [B, T] bool, and the sequences with the likeliest ones in their place, [B, T]."""
        raise TypeError(f"{type(self).__name__} hides no tokens")
