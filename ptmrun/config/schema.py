"""The config of a run: typed, frozen, strict. Nothing here imports torch, so a mistake is answered at once.

The keys that every run has are the classes below. What a choice of a group adds (`task.mask_ratio`) is typed by the `spec` block
of its own YAML file, so that a new model, task or data set needs no change here:

    spec:
      module: mae                                # the file of ptmrun/objectives (models, data/sources ...) that makes it
      needs / provides / requires: [...]         # what fits together, see compatibility.py
      types: {mask_ratio: ratio, patch: auto|count}
      roles: {errors: same_data}                 # what a key means to those who compare runs, see Role

A type is a name of TYPES, anything else a literal; `|` is "or", `[null|count]` a list of either, `model:text` the name of a model
that provides text. Defaults of a run's keys stand in YAML only.
"""

import enum
import functools
import operator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from ptmrun.config.compared import BASELINES

Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=4096)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Several = Annotated[int, Field(ge=2, le=2**31)]
Side = Annotated[int, Field(ge=4, le=1024)]
Natural = Annotated[int, Field(ge=0, le=2**31)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, lt=1)]
TYPES: dict[str, Any] = {
    "count": Count,
    "several": Several,
    "side": Side,
    "natural": Natural,
    "positive": Positive,
    "notneg": NotNegative,
    "fraction": Fraction,
    "ratio": Ratio,
    "flag": bool,
    "text": Text,
}
Baseline: Any = Literal[tuple(BASELINES)]
LAYER_DECAY = 0.75  # what finetune.layer_decay=auto is with few labels, and of weights from outside


class Role(enum.Flag):
    """What a key means to those who compare and go on with runs; declared once, on its field (of a choice's own key in the
    `roles` of its YAML)."""

    HARMLESS = enum.auto()  # does not change what is computed: may change on resume, and is no part of a stage's inputs
    LONGER = enum.auto()  # may grow on resume
    PLACE = enum.auto()  # where something lies that is known by its contents: may change on resume
    OWN = enum.auto()  # of this run alone: not inherited from the run of `init`
    HIDDEN = enum.auto()  # makes runs no different: compare does not show it
    SAME_DATA = enum.auto()  # leaves the data as they are
    REPEAT = enum.auto()  # runs of one setting may differ in it


class Strict(BaseModel):
    """Typed settings that cannot be changed."""

    section: ClassVar[str] = ""  # where in the config they stand
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Loop(Strict):
    """A training loop. Exactly one of `epochs` and `steps` is set. `auto`, by the number of labels, is for fine-tuning alone."""

    epochs: Annotated[Positive | None, Role.LONGER]
    steps: Annotated[Literal["auto"] | Count | None, Role.LONGER]
    batch_size: Count
    accumulate: Count
    optimizer: Literal["adamw", "sgd", "lars"]
    lr: Positive
    published_lr: Positive | None
    weight_decay: NotNegative
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    schedule: Literal["cosine", "linear", "constant", "staircase"]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    min_lr: NotNegative
    clip: Positive | None
    ema: Ratio | None
    layer_decay: Literal["auto"] | Annotated[float, Field(gt=0, le=1)]
    max_skipped: Count
    log_every: Annotated[Count, Role.HARMLESS]
    checkpoint_every: Annotated[NotNegative, Role.HARMLESS]


class Pretrain(Loop):
    section = "pretrain"
    probes: Annotated[Natural, Role.HARMLESS]


class ImagePretrain(Pretrain):
    augment: NotNegative


class TextPretrain(Pretrain):
    document_mask: bool
    sentences: Annotated[Annotated[list[Text], Field(min_length=1, max_length=4)] | None, Role.HARMLESS]


class Finetune(Loop):
    section = "finetune"
    name: str
    seeds: Count
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["none", "balanced"]
    freeze: list[Text] | None
    unfreeze: list[Text] | None
    scratch_lr: Positive | None
    head: Literal["probe", "random"]
    keep_probe: bool
    statistics: Literal["batch", "kept"]  # auto is settled by `init` when composed


class ImageFinetune(Finetune):
    augment: NotNegative
    mixup: NotNegative
    cutmix: NotNegative
    resolution: Side | None


class Evaluate(Strict):
    section = "evaluate"
    baselines: list[Baseline]
    scratch_repeats: Literal["auto"] | Count
    bins: Count
    map: Literal["pca", "umap"]


class Model(Strict):
    section = "model"
    name: str


class Task(Strict):
    section = "task"
    name: str


class Augment(Strict):
    section = "dataset.augment"
    shift: Annotated[float, Field(ge=0, lt=1)]
    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Annotated[float, Field(ge=0, lt=1)]
    shear: Annotated[float, Field(ge=0, lt=90)]
    flip: bool


class Dataset(Strict):
    section = "dataset"
    name: str
    root: Annotated[Text | None, Role.PLACE]
    limit: Count | None
    test_limit: Count | None
    val_fraction: Ratio
    test_fraction: Ratio
    folds: Annotated[int, Field(ge=2, le=1000)] | None
    fold: Annotated[Natural, Role.REPEAT]
    split_seed: Natural


class ImageDataset(Dataset):
    image_size: Literal["auto"] | Side
    normalise: Annotated[Literal["auto", "data"] | Annotated[list[NotNegative], Field(min_length=2)], Role.SAME_DATA]
    cache_gb: Annotated[NotNegative, Role.HARMLESS | Role.SAME_DATA]
    max_unreadable: Annotated[Fraction, Role.SAME_DATA]
    augment: Annotated[Augment, Role.SAME_DATA]


class AudioDataset(Dataset):
    rate: Literal["auto"] | Annotated[int, Field(ge=8000, le=192000)]
    seconds: Annotated[float, Field(ge=0.05, le=600)]
    max_unreadable: Annotated[Fraction, Role.SAME_DATA]


class Downstream(Strict):
    section = "downstream"
    name: str


class Device(Strict):
    section = "device"
    name: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "bf16"]
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    workers: Annotated[Literal["auto"] | Annotated[int, Field(ge=0, le=1024)], Role.HARMLESS]
    processes: Annotated[Annotated[int, Field(ge=1, le=65536)], Role.HARMLESS]
    shard: Annotated[bool, Role.HARMLESS]
    recompute: Annotated[bool, Role.HARMLESS]
    compile: bool
    side_by_side: Literal["auto"] | bool


class Logger(Strict):
    section = "logger"
    name: str


class Config(Strict):
    """One run. The sections that have a config group hold more keys than the base class names: those of the choice."""

    stage: Annotated[Literal["all", "pretrain", "finetune", "evaluate", "finetune+evaluate"], Role.OWN]
    init: Annotated[Text, Field(min_length=1)]
    seed: Annotated[Natural, Role.REPEAT]
    name: Annotated[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")] | None, Role.OWN | Role.HIDDEN]
    outputs: Annotated[Text, Field(min_length=1), Role.OWN | Role.HIDDEN]
    budget: Annotated[Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|m|h)$")] | None, Role.OWN | Role.HIDDEN]
    on_nan: Literal["recover", "stop"]
    skip_done: Annotated[bool, Role.OWN | Role.HIDDEN | Role.HARMLESS]
    strict: Annotated[bool, Role.OWN | Role.HIDDEN | Role.HARMLESS]
    model: Model
    task: Task
    dataset: Dataset
    downstream: Downstream
    finetune: Finetune
    device: Annotated[Device, Role.OWN]
    logger: Annotated[Logger, Role.OWN | Role.HIDDEN | Role.HARMLESS]
    pretrain: Pretrain
    evaluate: Evaluate


class Sweep(Strict):
    """The settings of a sweep (-m); no run has them."""

    resume: str | None
    grid: dict[str, list[str | int | float]]
    misfits: Literal["error", "skip"]
    search: Literal["grid", "optuna"]
    trials: Count
    batch: Count
    prune: bool
    seed: Natural


class VerbSettings(Strict):
    """The settings of a verb, from words as they were typed; no run has them."""

    model_config = ConfigDict(strict=False)


class Outputs(VerbSettings):
    outputs: str = "outputs"


class Export(VerbSettings):
    format: Literal["library", "onnx", "pt2"] = "library"
    merge: bool = False


class Bench(VerbSettings):
    out: str | None = None  # a new file, JSON
    pairs: Count = 5  # of measurements, for a ratio


class Inputs(VerbSettings):
    """out: a file to be written. column, pair_column: of tables, None: as in training. documents: which texts .txt files have."""

    out: str | None = None
    column: str | None = None
    pair_column: str | None = None
    documents: Literal["auto", "file", "lines", "blank_lines"] = "auto"


class Prediction(Inputs):
    top: Count = 5  # classes, or answers, that are listed
    repeats: Literal["first", "all"] = "first"  # all: the mean of all repeats with most labels
    pictures: str | None = None  # a new folder: pictures with boxes, or masks, that are found in them


class Embedding(Inputs):
    weights: Literal["finetuned", "pretrained"] = "finetuned"
    parts: bool = False  # of each patch, place of the map or token


class Sampling(VerbSettings):
    """temperature, top_p, samples: None is another number for texts than for pictures."""

    prompt: Annotated[str, Field(max_length=2**20)] = ""
    tokens: Literal["auto"] | Count = "auto"  # 100, or as many as the model has room for
    temperature: NotNegative | None = None  # 0: always the likeliest token
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    samples: Count | None = None
    seed: Natural = 0
    guidance: NotNegative | None = None  # how much a picture keeps to its text; 1: as it was learned
    out: str | None = None  # a new folder
    rerank: str | None = None  # a run of CLIP, by which pictures that fit the prompt best come first


OF_TEXTS, OF_PICTURES = {"tokens"}, {"out", "guidance", "rerank"}  # settings of Sampling


SECTIONS: dict[str, type[Strict]] = {
    "model": Model,
    "task": Task,
    "dataset": Dataset,
    "downstream": Downstream,
    "finetune": Finetune,
    "device": Device,
    "logger": Logger,
}


KINDS: dict[str, dict[str, type[Strict]]] = {  # sections that have more keys for a kind of data, by its folder in data/
    "images": {"dataset": ImageDataset, "pretrain": ImagePretrain, "finetune": ImageFinetune},
    "text": {"pretrain": TextPretrain},
    "audio": {"dataset": AudioDataset},
    "pairs": {"dataset": ImageDataset, "pretrain": ImagePretrain, "finetune": ImageFinetune},
}
BASES: dict[str, type[Strict]] = {**SECTIONS, "pretrain": Pretrain, "evaluate": Evaluate}


def base(section: str, kind: str) -> type[Strict]:
    """The keys of a section that do not depend on the choice."""
    return KINDS.get(kind, {}).get(section, BASES[section])


def foreign(kind: str) -> set[str]:
    """The dotted keys that other kinds of data have and this one has not."""
    others = {f"{section}.{key}" for known in KINDS.values() for section, type_ in known.items() for key in type_.model_fields}
    return others - {f"{section}.{key}" for section in BASES for key in base(section, kind).model_fields}


def roles(field: Any) -> Role:
    """What a field declares."""
    return functools.reduce(operator.or_, (m for m in field.metadata if isinstance(m, Role)), Role(0))


def role_of(config: Strict, key: str) -> Role:
    """What the fields on the way to a dotted key of a config declare."""
    declared, where = Role(0), config
    for part in key.split("."):
        field = type(where).model_fields.get(part)
        if field is None:
            break
        declared |= roles(field)
        where = getattr(where, part)
    return declared


def keys_with(role: Role, kind: type[Strict] = Config, prefix: str = "") -> list[str]:
    """The dotted keys whose field declares a role, but for those that a choice or a kind of data adds."""
    keys = []
    for name, field in kind.model_fields.items():
        if role in roles(field):
            keys.append(f"{prefix}{name}")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            keys += keys_with(role, field.annotation, f"{prefix}{name}.")
    return keys


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
