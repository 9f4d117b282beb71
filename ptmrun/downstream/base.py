"""What a labelled problem is to the stages. Each file or folder of downstream/ has one, as its `PROBLEM`."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from ptmrun.config.compared import UNTRAINED
from ptmrun.data.modality import Input, InputRequest, Picture
from ptmrun.loss import Learner
from ptmrun.models import batchnorm

MAX_BASELINE_SAMPLES = 10_000  # training samples that a baseline without a training loop sees

Predictions = dict[str, Tensor]
Features = Callable[..., np.ndarray]
"""(random_frozen or frozen, a split) -> [N, D]; with a third argument, look(encoder, inputs), what that gives: [N, ...]"""


@dataclass(frozen=True)
class ProblemSetup:
    """What a model must know of the labels, beside its encoder; a run has it without its data set.

    classes: names, in the order of the labels; empty where answers are of another kind. options: the `downstream` section of
    the config. processor: that of the data, see data/modality.py. facts: what the manifest says of the data.
    """

    classes: list[str]
    options: Any
    processor: Any
    facts: dict[str, Any]


def frozen(module: nn.Module) -> bool:
    """It has parameters, and none of them is trained."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


class Model(Learner):
    """An encoder with a head. Its `forward` takes batches with labels."""

    linear_probe = False  # whether it has `classified`, `set_head` and `init_head_from_probe`
    library_task = ""  # what libraries' models of its kind do: classes (one a sample), several, tags (one a token), answers
    graph_task = ""  # where there is none, what is made of its `outputs` outside of ptmrun: boxes, masks

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays as in evaluation: no dropout, and batch normalisation keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if frozen(module) or batchnorm.has_frozen_statistics(module):
                module.eval()
        return self

    @abstractmethod
    def predict(self, batches: Iterable[Any]) -> Predictions:
        """What it says of all samples, on the CPU, from the inputs of an encoder."""

    def outputs(self, inputs: Any) -> Tensor:
        """The numbers that its answers are made of, where there is a `library_task` or a `graph_task`: [B, classes], or of each
        token [B, T, n], or as the model has it."""
        raise TypeError(f"{type(self).__name__} does not answer with one tensor")

    def recipe(self, setup: ProblemSetup) -> dict[str, Any]:
        """With a `graph_task`: what programs without ptmrun must know to make answers of its `outputs`, as JSON."""
        return {}

    def classified(self, features: Tensor) -> Predictions:
        """What `predict` says of samples with these features of its encoder, [N, D]."""
        raise TypeError(f"{type(self).__name__} has no linear head on features")

    def set_head(self, head: Any, mean: Tensor, std: Tensor) -> None:
        """Takes a linear layer that was trained on standardised features."""
        raise TypeError(f"{type(self).__name__} has no linear head on features")

    def init_head_from_probe(self, features: Tensor, labels: Tensor) -> None:
        """Sets the head to a linear probe of frozen features [times * N, D] of samples labelled [N]."""
        raise TypeError(f"{type(self).__name__} has no linear head on features")

    def balance_classes(self, labels: Tensor | None) -> None:
        """From here on every class weighs as much as any other among these labels, or as saved weights say that are loaded later;
        nothing where there are no classes."""

    def reference_nll(self, batches: Iterable[dict[str, Any]]) -> Predictions:
        """Negative log-likelihood of the right answers, {"nats": [N]}; {} where the predictions tell it."""
        return {}


class ReadSplits(Protocol):
    """Files of the problem's own kind -> ({split: its samples}, classes, fingerprint). Raises UserError."""

    def __call__(
        self, options: Any, tokenizer: Any, length: int, notes: list[str]
    ) -> tuple[Mapping[str, Any], list[str], str]: ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The functions and constants of a labelled problem."""

    metric: str  # of its score, 0 to 1
    counted: str  # what downstream.labels_per_class counts
    build: Callable[[Any, ProblemSetup, Any], Model]  # (encoder, setup, options of `finetune`) -> the model before training
    subset: Callable[[Any, list[str], int | None, int], Tensor]  # (split, classes, labels, seed) -> indices; raises UserError
    valid: Callable[[Predictions, Any, list[str]], bool]  # (predictions, split, classes): whether they can be of this split
    score: Callable[[Predictions, Any], float]
    per_sample_scores: Callable[[Predictions, Any], np.ndarray]  # [N]
    baseline_predictions: Callable[[str, Any, Any, Features], Predictions]  # (name of a baseline, data, training split, features)
    columns_of_predictions: Callable[[Predictions, Any, list[str]], dict[str, pa.Array]]
    metrics: Callable[[Predictions, Any, list[str], int], dict[str, Any]]  # (predictions, split, classes, bins)
    answer_rows: Callable[[Predictions, Any, list[str], int], list[dict[str, Any]]] | None = None
    """(predictions, split without answers, classes, top) -> what `ptmrun predict` says of each sample; None: it is not there"""
    averaged: Callable[[list[Predictions]], Predictions] | None = None  # of several models, as those of one; None: of one alone
    inputs: Callable[[InputRequest, ProblemSetup], Iterator[Input]] | None = None  # None: as the kind of data has them
    opened: Callable[[list[Any], ProblemSetup], list[Any]] | None = None
    """(pictures, paths ..., setup) -> what `unlabelled` takes of each, or Unreadable; None: as `Processor.opened` has it"""
    unlabelled: Callable[[list[Any], ProblemSetup], Any] | None = None
    """(what `opened` or `Processor.opened` gave) -> a split without answers; None: as the processor has it. Raises UserError"""
    read_splits: ReadSplits | None = None  # None: the labels of a data set
    own_answers: Callable[[tuple[Any, Any, Any], Any, list[str]], tuple[Any, Any, Any]] | None = None
    """(training, validation and test split of a data set, options, notes) -> the same with what is to be answered, where that is
    no class; None: their labels. Raises UserError"""
    files: Callable[[Predictions, Any, Any], dict[str, Any]] = lambda predictions, split, options: {}  # {name: content as JSON}
    written: Mapping[str, Callable[[list[dict[str, Any]], ProblemSetup], Any]] = field(default_factory=dict)
    """{ending of a file: (rows of `ptmrun predict`, setup) -> its content as JSON}"""
    drawn: Callable[[Any, dict[str, Any]], bytes | dict[str, bytes]] | None = None
    """(what was read, its row of `ptmrun predict`) -> a PNG, or several by what their names end with. Members of a row that are
    called `pictures` are for this alone"""
    pictures: Callable[[Predictions, Any, list[str], Any], list[Picture]] | None = None
    """(predictions, test split, classes, processor) -> what is drawn of them"""
    frozen_heads: bool = False  # random_frozen and frozen are heads trained as `tuned` is, on encoders that stay as they are
    untrained_baselines: tuple[str, ...] = UNTRAINED  # those without a training loop that it has
    baseline_phrases: dict[str, str] = field(default_factory=dict)  # instead of the usual phrases in tables
    max_baseline_samples: int = MAX_BASELINE_SAMPLES
    trains: bool = True  # False: the pretrained encoder is evaluated as it is, once, and nothing is fine-tuned
    whole_encoder: bool = False  # it needs parts that fine-tuning leaves out elsewhere, such as a decoder
