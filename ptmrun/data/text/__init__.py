"""Texts as the data of a run."""

from pathlib import Path
from typing import Any

import torch

from ptmrun.data.modality import Modality
from ptmrun.data.text import inputs, tokenizer
from ptmrun.data.text.load import of_run
from ptmrun.data.text.processor import TextProcessor
from ptmrun.errors import UserError


def processor(cfg: Any, facts: dict[str, Any], folder: Path | None, family: Any, device: torch.device) -> TextProcessor:
    if folder is None:
        raise UserError("checkpoints/tokenizer: missing in the run and in those that it starts from")
    return TextProcessor(tokenizer.of_run(folder, family.framing), cfg.model.length, device, inputs.pairs(cfg))


MODALITY = Modality(load=of_run, processor=processor, inputs=inputs.of_run)
