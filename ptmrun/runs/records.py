"""What ptmrun writes in manifest.json, results.json, metrics.jsonl and the header of a checkpoint, to be checked when it is read.

Only what the code reads is typed; other entries pass and are shown at most.
"""

import math
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ptmrun.config.compared import BASELINES
from ptmrun.errors import UserError

Natural = Annotated[int, Field(ge=0, le=2**53)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def without_controls(text: str) -> str:
    if not text.isprintable():
        raise ValueError("control characters")
    return text


Printable = Annotated[str, AfterValidator(without_controls)]


class Record(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())


def apart(levels: list[float]) -> list[float]:
    if levels[0] >= levels[1]:
        raise ValueError("expected black below white")
    return levels


Levels = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(apart)]


class Facts(Record):
    """Of the data."""

    fingerprint: str
    classes: list[str] | None = None
    mean: list[float] = []
    std: list[float] = []
    longest_target: Annotated[int, Field(ge=1, le=2**20)] = 1
    levels: dict[Literal["whole", "decimal"], Levels] = {}
    unanswered: bool = False
    text_column: str = ""
    described: str = ""
    sizes: dict[str, Natural] = {}  # of the splits
    counts: dict[str, list[Natural]] = {}  # of each class, by split
    notes: list[Printable] = []


class Parent(Record):
    run: str
    weights_sha256: Hash | None
    data: str | None = None


class Recovery(Record):
    purpose: str
    why: str
    to: Natural
    lr_scale: float = 1


class Alarm(Record):
    """That features may be collapsing."""

    step: Natural
    what: Printable


class Fit(Record):
    """What a training took."""

    flops: Annotated[float, Field(gt=0)]
    steps: Natural
    samples: Natural


class Compute(Record):
    """Of the pretrainings: those before the run (null: not known), and its own."""

    before: Annotated[float, Field(ge=0)] | None = None
    pretrain: Fit = Fit(flops=1, steps=0, samples=0)  # absent where there is none


class Manifest(Record):
    status: Literal["running", "done", "failed", "interrupted"]
    command: str = ""
    packages: dict[str, str] = {}
    code_sha256: str = ""
    hardware: dict[str, Any] = {}
    data: Facts = Facts(fingerprint="")
    parents: list[Parent] = []
    wall_s: dict[str, float] = {}
    cpu_s: dict[str, float] = {}
    compute: Compute = Compute()
    weights_sha256: Hash = ""
    finetuned_sha256: dict[str, Hash] = {}
    sha256: dict[str, list[Hash]] = {}  # of files: of what was written last, and of what stood there before
    recoveries: list[Recovery] = []
    alarms: list[Alarm] = []
    inputs: dict[str, str] = {}
    reused: dict[str, str] = {}
    read: list[str] = []
    changed: list[str] = []
    resumed: list[str] = []
    tracking_id: str = ""
    error: str = ""
    started: str = ""
    ended: str = ""


class Score(Record):
    mean: float
    sd: float | None
    values: list[float] = []


class Reference(Record):
    """The compute that a verdict rests on."""

    tuned: Annotated[float, Field(gt=0)]
    total: Annotated[float, Field(gt=0)]
    known: bool


class Verdict(Record):
    """Older versions wrote the first three alone."""

    gain_over_scratch: float
    noise: float
    helped: bool
    outcome: Literal["better", "equal", "already_paid", "worse"] = "equal"
    gain_over_short: float = 0
    noise_short: float = 0
    noise_of_samples: Annotated[list[float | None], Field(min_length=2, max_length=2)] = [None, None]
    pretrainings: Natural = 1
    repeats: Annotated[list[Natural], Field(min_length=2, max_length=2)] = [1, 1]
    compute: Reference = Reference(tuned=1, total=1, known=False)
    scratch_needs: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def whole(self) -> "Verdict":
        lacking = type(self).model_fields.keys() - self.model_fields_set
        if "outcome" in self.model_fields_set and lacking:
            raise ValueError(min(lacking))
        return self


class Point(Record):
    """Of the curve from scratch."""

    steps: Natural
    flops: Annotated[float, Field(gt=0)]
    score: Score
    val_scores: list[float]


class Floor(Record):
    """How far what is evaluated without training stands above the best floor."""

    name: Literal[tuple(BASELINES)]  # type: ignore[valid-type]
    gain: float
    noise: float


class Scores(Record):
    """By method, for one number of labels."""

    labels_per_class: Natural | None
    scores: dict[str, Score]
    verdict: Verdict = Verdict(gain_over_scratch=0, noise=0, helped=False)  # absent without a comparison
    curve: list[Point] = []
    floor: Floor | None = None
    compute: dict[Literal["tuned", "scratch"], Fit] = {}


class Group(Record):
    n: Natural
    accuracy: float
    f1_macro: float


class Parameters(Record):
    trained: Natural
    all: Annotated[int, Field(ge=1)]


class Utterance(Record):
    sound: Printable
    reference: Printable
    prediction: Printable
    score: float


class Metrics(Record):
    groups: dict[str, Group] = {}  # absent where the data has none
    absent: list[str] = []
    signatures: dict[str, Printable] = {}
    wer: float | None = None  # of speech, as the three that follow
    cer: float = 0
    exact: float = 0
    worst: list[Utterance] = []
    confusion: list[list[Natural]] = []
    per_class: dict[str, dict[str, Any]] = {}
    ece: float | None = None

    @model_validator(mode="after")
    def square(self) -> "Metrics":
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion")
        return self


class Results(Record):
    metric: Printable
    score: float
    val_score: float | None
    seeds: Natural
    n_test: Natural
    test_seen: Natural = 0
    counted: Printable = "labels per class"
    words: dict[str, Printable] = {}
    metrics: Metrics = Metrics()
    by_labels: Annotated[list[Scores], Field(min_length=1)]
    pretrain: dict[str, float] | None = None
    cpu_s: dict[str, float] = {}
    parameters: Parameters | None = None
    compute: Compute = Compute()
    ranks: dict[str, Natural] = {}

    @model_validator(mode="after")
    def same_methods(self) -> "Results":
        kinds = self.by_labels[0].scores.keys()
        if "tuned" not in kinds or any(s.scores.keys() != kinds for s in self.by_labels):
            raise ValueError("by_labels")
        return self


class Line(Record):
    """Of metrics.jsonl."""

    stage: str
    step: Natural
    loss: float = 0
    samples_per_s: float = 0
    probe_knn: float = 0
    probe_linear: float = 0

    @model_validator(mode="after")
    def in_pairs(self) -> "Line":
        for a, b in (("loss", "samples_per_s"), ("probe_knn", "probe_linear")):
            if a in self.model_fields_set and b not in self.model_fields_set:
                raise ValueError(b)
        return self


class Sample(Record):
    step: Natural
    given: list[str]
    said: list[str]

    @model_validator(mode="after")
    def as_many(self) -> "Sample":
        if len(self.given) != len(self.said):
            raise ValueError("said")
        return self


class Samples(Record):
    """What a model of text said at some steps."""

    samples: list[Sample]


class State(Record):
    """Of a checkpoint that training goes on from (training/checkpoint.py)."""

    precision: Literal["fp32", "bf16"]
    step: Natural
    steps: Natural
    skipped: Natural
    in_a_row: Natural
    first: Annotated[list[float], Field(max_length=1)]
    window: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]]
    last: dict[str, float]
    lr_scale: Annotated[float, Field(gt=0, le=1)]
    recoveries: list[dict[str, Any]]
    good_step: Natural


def check_line(line: bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl, by the short way that most of them can go; None where only the long one says what is wrong."""
    try:
        entry = pydantic_core.from_json(line, allow_inf_nan=False)
        Line.model_validate(entry)
    except ValueError:
        return None
    plain = all(type(v) in (int, float, str, bool) for v in entry.values())
    return entry if plain and all(math.isfinite(v) for v in entry.values() if type(v) is float) else None


def check(kind: type[Record], raw: Any, where: str) -> dict[str, Any]:
    """`raw` as it is. Raises UserError that names the entry which is not of this kind."""
    try:
        kind.model_validate(raw)
    except ValidationError as error:
        entry = ".".join(map(str, error.errors()[0]["loc"])) or "the content"
        raise UserError(f"{where}: {entry} is not what ptmrun writes there") from None
    return raw
