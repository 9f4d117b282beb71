"""ptmrun: pretrain, fine-tune and evaluate pre-trained models from YAML."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ptmrun.api import TrainedModel

__version__ = "0.1.0"


def load(run: "str | os.PathLike[str]", every_repeat: bool = False) -> "TrainedModel":
    """A finished run, to be used: see api.TrainedModel. torch is imported here, not with ptmrun."""
    from ptmrun.api import TrainedModel

    return TrainedModel(run, every_repeat)
