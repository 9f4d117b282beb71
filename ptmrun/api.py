"""A finished run in Python: `ptmrun.load(RUN)`. What stands here stays as it is from version to version."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ptmrun.config.schema import Config
from ptmrun.data.modality import Unreadable
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages.predictor import Predictor


class TrainedModel:
    """A run's model, used as it was trained, on the device of the run, or where that is not there on the best one, with as many
    threads and as deterministic kernels as it had (these are PyTorch's own settings, of the whole process).

    Inputs are a list: of images paths, PIL pictures or arrays uint8 [H, W] or [H, W, 3]; of texts strings, of pairs tuples of
    two, of questions tuples (question, context), of sentences to be tagged strings or lists of words.
    """

    def __init__(self, run: str | os.PathLike[str], every_repeat: bool = False):
        """Reads the run folder as data; no code comes from it. every_repeat: predictions are the mean of all its repeats.

        Raises UserError where there is no such run, or nothing in it was trained.
        """
        self._run = Run.open(Path(run))
        self._predictor = Predictor.load(self._run, every_repeat)

    def predict(self, inputs: list[Any], top: int = 5) -> list[dict[str, Any]]:
        """A dict for each input: prediction, confidence, probabilities (of the `top` likeliest, by name), unlike (how many of a
        hundred held-out samples are more like the training data), and what else its problem says; or error: why it cannot be
        read.

        Raises UserError where nothing was fine-tuned.
        """
        return self._predictor.predict(as_list(inputs), top)

    def embed(self, inputs: list[Any], pretrained: bool = False, parts: bool = False) -> list[np.ndarray | None]:
        """Features of each input, float32 [D], or of its parts [n, D] (patches, places of the map, tokens); None for what cannot
        be read. By the fine-tuned encoder, or with `pretrained` as it was before."""
        features = self._predictor.embed(as_list(inputs), pretrained, parts)
        return [None if isinstance(x, Unreadable) else x for x in features]

    def preprocess(self, inputs: list[Any]) -> Any:
        """What `model` is given: of images float32 [B, C, S, S], of texts a batch.Tokens. Raises UserError for what cannot be
        read."""
        processor = self._predictor.networks.processor
        opened = processor.opened(as_list(inputs))
        if bad := [(i, x.reason) for i, x in enumerate(opened) if isinstance(x, Unreadable)]:
            raise UserError(*(f"input {i}: {reason}" for i, reason in bad))
        return processor(next(processor.split(opened).all(len(opened))))

    @property
    def model(self) -> nn.Module:
        """The library's own network (transformers, torchvision), with the fine-tuned weights where there are some."""
        return self._predictor.encoder.net

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the classifier's outputs."""
        return list(self._predictor.networks.classes)

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return self._predictor.networks.cfg

    @property
    def results(self) -> dict[str, Any] | None:
        """What stands in results.json; None where the run has not evaluated."""
        return self._run.results()


def as_list(inputs: Any) -> list[Any]:
    """One input is a list of one."""
    return list(inputs) if isinstance(inputs, list) else [inputs]
