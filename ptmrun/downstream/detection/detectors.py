"""The detector that `downstream.detector` names."""

from typing import Any

from ptmrun.downstream.base import Model, ProblemSetup
from ptmrun.downstream.detection.head import Detector
from ptmrun.downstream.detection.pyramid import STRIDES
from ptmrun.downstream.detection.two_stages import TwoStages
from ptmrun.errors import UserError


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Model:
    """The model of a fine-tuning with these options, before training. Raises UserError for images of a side that does not fit."""
    size, unit = setup.processor.size, STRIDES[-1]
    if size % unit:
        near = max(unit, unit * round(size / unit))
        raise UserError(f"dataset.image_size={size}: detection wants a multiple of {unit}, such as {near}")
    if setup.options.detector == "faster_rcnn":
        return TwoStages(encoder, len(setup.classes), size)
    return Detector(encoder, len(setup.classes), size, setup.options.detector)
