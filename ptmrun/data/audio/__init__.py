"""Sounds as the data of a run."""

from pathlib import Path
from typing import Any

import torch

from ptmrun.data.audio.inputs import of_run as inputs
from ptmrun.data.audio.load import of_run
from ptmrun.data.audio.processor import AudioProcessor
from ptmrun.data.modality import Modality


def processor(cfg: Any, facts: dict[str, Any], folder: Path | None, family: Any, device: torch.device) -> AudioProcessor:
    return AudioProcessor(facts["rate"], facts["length"], device)


MODALITY = Modality(load=of_run, processor=processor, inputs=inputs)
