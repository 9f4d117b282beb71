"""What a kind of data is: a folder of data/ with its `MODALITY`, which makes the `Data` of a run. A data set names it among what
its YAML `provides`."""

import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import packed, unpacked
from ptmrun.data.block_shuffle import BlockShuffle
from ptmrun.data.epochs import Epochs
from ptmrun.errors import UserError

Progress = Callable[[str, int, int], None]  # (title, done, of how many)


@dataclass(frozen=True)
class Unreadable:
    """In the place of what cannot be read: why not."""

    reason: str


class Input(NamedTuple):
    """Something to be predicted. where: what the user calls it, a path, or a file and its line or row; raw: what
    `Processor.opened` takes, or Unreadable."""

    where: str
    raw: Any


@dataclass(frozen=True, kw_only=True)
class InputRequest:
    """What is to be predicted, as it was typed, for a run. names: files, folders, patterns, or - for standard input; facts: what
    its manifest says of the data; column, pair_column: of tables, None: as in training; documents: what of a .txt file is a text,
    auto: as in training; note: is given lines for the user."""

    names: list[str]
    cfg: Any
    facts: dict[str, Any]
    column: str | None = None
    pair_column: str | None = None
    documents: str = "auto"
    note: Callable[[str], None] = lambda line: None


class Split(abc.ABC):
    """Samples of one split. labels: classes [N], 0 and 1 [N, classes] where a sample may have several, or none. groups [N] or
    none: names of the subgroups that scores are told apart by."""

    labels: Tensor | None
    groups: np.ndarray | None
    facts: ClassVar[dict[str, Any]] = {}  # for the manifest
    answered = False  # there is something to learn, though there are no classes

    @property
    def block_shuffle(self) -> BlockShuffle | None:
        """By which the samples are shuffled; None: all together."""
        return None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @property
    def group_ids(self) -> Tensor | None:
        """[N]: samples with equal ones stay together when a split is cut; None: each is alone."""
        return None

    def part_seen(self, name: str, ids: Tensor) -> Tensor:
        """[N] bool: whether the numbers of a part of each sample (what `group_ids` of samples of its kind alone are) are among
        these."""
        raise TypeError(f"{type(self).__name__} has samples without parts")

    @property
    def weighed(self) -> Tensor | None:
        """[n]: the classes by whose frequency they are balanced."""
        return self.labels

    @property
    def sample_names(self) -> list[str]:
        """What the user calls each sample, N: its file, file and line, or row; none where that is not known."""
        return []

    @abc.abstractmethod
    def subset(self, indices: Tensor) -> Self: ...

    @abc.abstractmethod
    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Any]:
        """The samples of each list of this split's indices, in order."""

    def answers(self, indices: Tensor) -> Any:
        """What a model is to say of these samples: their labels, or what a subclass has instead of them; with `to(device)`."""
        return None if self.labels is None else self.labels[indices]

    def evenly_spaced(self, count: int) -> Self:
        """At most `count` of the samples, evenly spaced."""
        places = torch.linspace(0, len(self) - 1, min(count, len(self))).long()
        return self.subset(places.clamp(max=len(self) - 1))  # float32 rounds beyond 16 million

    def sorted_by_length(self) -> tuple[Self, Tensor | slice]:
        """The same samples, the shortest first, so that little is padded; and the place of each in that order, [N], by which rows
        that were made of them are put back. As they are where they have one length."""
        return self, slice(None)

    def all(self, size: int = 64) -> Iterator[Any]:
        """The whole split in order, in batches."""
        return self.batches(torch.arange(len(self)).split(size))


@dataclass
class ReadSplit(Split):
    """Samples without labels, as `Processor.read` gave them; kind: its `samples`."""

    tensors: dict[str, Tensor]
    kind: type | None
    labels = None
    groups = None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def subset(self, indices: Tensor) -> "ReadSplit":
        return ReadSplit({name: value[indices] for name, value in self.tensors.items()}, self.kind)

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Any]:
        return (unpacked(self.subset(indices).tensors, self.kind) for indices in index_lists)


class Processor(abc.ABC):
    """How samples become what encoders take. It goes with saved weights and needs no data set."""

    tokenizer: Any = None  # of texts
    samples: type | None = None  # what splits give: one tensor, or a batch.Samples

    @abc.abstractmethod
    def __call__(self, samples: Any) -> Any:
        """What splits give -> what encoders take, on the device."""

    @abc.abstractmethod
    def read(self, raw: list[Any]) -> Any:
        """Pictures, strings ... -> what splits give."""

    def texts(self, raw: list[str]) -> Any:
        """Texts alone, as a model of samples with texts takes them."""
        raise TypeError(f"{type(self).__name__} reads no texts")

    def opened(self, raw: list[Any]) -> list[Any]:
        """What `read` and `split` take: of images, their paths decoded. Unreadable in the place of what cannot be read."""
        return raw

    def split(self, raw: list[Any]) -> Split:
        """What was `opened`, at least one sample, as a split without labels. Raises UserError for what is no such sample."""
        return ReadSplit(packed(self.read(raw)), self.samples)

    def back(self, inputs: Any) -> Any:
        """What a person sees of inputs: of images [B, C, S, S] from 0 to 1."""
        raise TypeError(f"{type(self).__name__}: nothing to look at")

    @abc.abstractmethod
    def noise(self, count: int) -> Any:
        """Random samples."""

    def unpacked(self, named: dict[str, Tensor]) -> Any:
        """Samples from their tensors by name, as batch.packed gives them. Raises UserError when they are others."""
        try:
            return unpacked(named, self.samples)
        except (KeyError, TypeError):
            raise UserError(f"samples of {', '.join(named)}: not what ptmrun saved; refused") from None

    @property
    @abc.abstractmethod
    def spec(self) -> Any:
        """What a family's `resolve` and `build` are told."""

    @property
    @abc.abstractmethod
    def preprocessing(self) -> tuple[Any, ...]:
        """What an encoder's `save` is given."""

    def configure(self, encoder: Any, options: Any) -> str | None:
        """Sets an encoder up as the options of `finetune` want it; which key it followed, as key=value, where there is one."""
        return None

    def mixing(self, options: Any) -> tuple[float, float]:
        """The alphas of MixUp and CutMix in these options."""
        return 0.0, 0.0


class Picture(NamedTuple):
    """Something to draw: a function of reports/figures.py, and what it is given after the run."""

    drawer: str
    parts: tuple[Any, ...]


@dataclass(kw_only=True)
class Data(abc.ABC):
    """The data of a run, for all its stages."""

    noun: ClassVar[str] = "samples"
    raw_baselines: ClassVar[tuple[str, ...]] = ("raw",)  # of config.compared.RAW, those that these data give inputs for
    baseline_phrases: ClassVar[dict[str, str]] = {}  # instead of the usual phrases in tables, unless the problem has its own
    train: Any
    val: Any
    test: Any
    classes: list[str]  # names, in the order of the labels
    fingerprint: str
    older_fingerprint: str = ""  # by which runs of earlier versions know the same data
    notes: list[str] = field(default_factory=list)
    test_seen: int = 0  # test samples of which equal ones stand in the training or validation split
    no_classes: str = ""  # why its labels cannot be meant as classes
    created_splits: dict[str, list[str]] = field(default_factory=dict)  # names of the samples in splits that were made here
    unreadable: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # by file, what of the labels was left out or mended
    val_corpus: Any = None  # what pretraining is judged by; None where probes alone judge it
    test_corpus: Any = None  # the same of the test split

    def known_as(self, fingerprint: str) -> bool:
        """Whether a run's manifest means these data."""
        return fingerprint in (self.fingerprint, self.older_fingerprint)

    @property
    def corpus(self) -> Any:
        """The split that pretraining reads."""
        return self.train

    @property
    def corpus_print(self) -> str:
        """The fingerprint of what is pretrained on, whatever is labelled."""
        return self.fingerprint

    @abc.abstractmethod
    def processor(self, device: torch.device) -> Processor: ...

    @property
    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """For the manifest: all that `Modality.processor` needs to make the processor again."""

    @property
    def resolved_settings(self) -> dict[str, Any]:
        """{config key: value} of what was auto."""
        return {}

    @abc.abstractmethod
    def batches(
        self, model: Any, split: Any, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Processor
    ) -> Epochs:
        """Batches of a split as a loss.Learner wants them."""

    @abc.abstractmethod
    def raw(self, kind: str, train: Any) -> tuple[Any, Any, float]:
        """For one of `raw_baselines`: matrices of a training split and of the test split, and the C of logistic regression."""

    def save_processor(self, folder: Path) -> None:  # noqa: B027
        """Writes what `facts` have no place for."""

    def without_augmentation(self, loop: Any) -> Any:
        """The settings of a loop, without what changes samples at random."""
        return loop

    def derived_metrics(self, means: dict[str, float], split: Any) -> dict[str, float]:
        """What follows from an objective's means over a split."""
        return {}

    def captions(self, split: Any) -> list[str]:
        """A text that says what each sample shows; none where there is none."""
        return []

    def words(self, split: Any) -> list[set[str]]:
        """Of all such texts of each sample."""
        return []

    def misfit(self, cfg: Any, parent: Any, error: UserError) -> UserError:
        """Why the encoder of the run `parent` does not fit these data."""
        return UserError(f"init={cfg.init}: its encoder does not fit this data: {error}")

    def adapted(self, encoder: Any) -> list[str]:
        """Notes on what an encoder changes in these data."""
        return []

    def doubts(self, encoder: Callable[[], Any]) -> list[str]:
        """Warnings of what the encoder that it makes cannot learn of these data."""
        return []

    def pictures_of_samples(self, cfg: Any, processor: Processor) -> list[Picture]:
        return []

    def pictures_of_pretraining(
        self,
        cfg: Any,
        objective: Any,
        processor: Processor,
        batch_of: Callable[[Any], dict[str, Any]],
        autocast: Callable[[], Any],
    ) -> list[Picture]:
        """`batch_of`: a batch as the objective has it, of all samples of a split."""
        return []


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What `Modality.load` is asked for. read: the data set's own reader; family, problem: what is to be trained; folder: the
    saved tokenizer, or what else `Data.save_processor` wrote, to use again, or None; progress: called while reading; longest:
    tokens of a text that weights from outside know places of, None: any number."""

    read: Callable[[Any], Any]
    cfg: Any
    family: Any
    problem: Any
    folder: Path | None
    progress: Progress
    longest: int | None = None


@dataclass(frozen=True, kw_only=True)
class Modality:
    """Where a kind of data comes from."""

    load: Callable[[LoadRequest], Data]  # raises UserError
    processor: Callable[[Any, dict[str, Any], Path | None, Any, torch.device], Processor]
    """(cfg, `facts` of the manifest, folder of what it saved or None, family, device) -> that of the data, without them."""
    as_published: Callable[[Any, Callable[[], list[float]]], dict[str, Any]] = lambda cfg, normalisation: {}
    """(cfg, how inputs of the weights from outside are normalised) -> {dotted key: value} of what is auto in `dataset`."""
    inputs: Callable[[InputRequest], Iterator[Input]] | None = None  # None: of this kind nothing is read from files
