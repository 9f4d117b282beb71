"""Images with captions as the data of a run."""

from pathlib import Path
from typing import Any

import torch

from ptmrun.data import images, text
from ptmrun.data.modality import Modality
from ptmrun.data.pairs.load import of_run
from ptmrun.data.pairs.processor import PairProcessor


def processor(cfg: Any, facts: dict[str, Any], folder: Path | None, family: Any, device: torch.device) -> PairProcessor:
    return PairProcessor(images.processor(cfg, facts, folder, family, device), text.processor(cfg, facts, folder, family, device))


MODALITY = Modality(load=of_run, processor=processor, as_published=images.as_published, inputs=images.inputs)
