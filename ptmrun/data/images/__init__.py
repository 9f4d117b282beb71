"""Images as the data of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ptmrun.data.images import levels
from ptmrun.data.images.inputs import of_run as inputs
from ptmrun.data.images.load import of_run
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.modality import Modality


def processor(cfg: Any, facts: dict[str, Any], folder: Path | None, family: Any, device: torch.device) -> ImageProcessor:
    mean, std = torch.tensor(facts["mean"]), torch.tensor(facts["std"])
    return ImageProcessor(mean, std, device, cfg.dataset.image_size, levels.of_facts(facts))


def as_published(cfg: Any, normalisation: Callable[[], list[float]]) -> dict[str, Any]:
    return {"dataset.normalise": normalisation()} if cfg.dataset.normalise == "auto" else {}


MODALITY = Modality(load=of_run, processor=processor, as_published=as_published, inputs=inputs)
