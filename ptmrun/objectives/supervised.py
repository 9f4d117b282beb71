"""Supervised pretraining: the training images' own labels, with label smoothing, MixUp and CutMix."""

from typing import Any

from ptmrun.downstream.classification import Classifier
from ptmrun.objectives import base


class Objective(Classifier, base.Objective):
    """`options`: label_smoothing, mixup, cutmix."""

    def __init__(self, encoder: Any, options: Any, classes: int):
        super().__init__(encoder, classes, options.label_smoothing, (options.mixup, options.cutmix))
