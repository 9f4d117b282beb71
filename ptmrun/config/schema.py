"""The config of a run: typed, frozen, strict. Nothing here imports torch, so a mistake is answered at once.

The keys that every run has are the classes below. What a choice of a group adds (`task.mask_ratio`) is typed by the `spec` block
of its own YAML file, so that a new model, task or data set needs no change here:

    spec:
      module: mae                                # the file of ptmrun/objectives (models, data/sources ...) that makes it
      needs / provides / requires: [...]         # what fits together, see `misfits`
      types: {mask_ratio: ratio, patch: auto|count}

A type is a name of TYPES, anything else a literal; `|` is "or", `[null|count]` a list of either. Defaults stand in YAML only.
"""

import functools
import re
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ptmrun.config import secrets
from ptmrun.config.init_source import origin
from ptmrun.errors import Misfit, UserError, nearest, printable
from ptmrun.storage.safe_read import plain_yaml

PACKAGE = Path(__file__).parents[1]


CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in a wheel, or in the source tree


GROUPS = ("model", "task", "dataset", "downstream", "finetune", "device", "logger", "experiment")


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


LAYER_DECAY = 0.75  # what finetune.layer_decay=auto is with few labels, and of weights from outside


MISSING = ": missing"


TOLD: set[str] = set()  # what has been said of configs of older versions


READ: set[str] = set()  # the dotted keys that something has read, to find those that nothing does


class Strict(BaseModel):
    """Typed settings that cannot be changed, and that know which of them are read."""

    section: ClassVar[str] = ""  # where in the config they stand
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    def __getattribute__(self, name: str) -> Any:
        if name in type(self).model_fields:
            section = type(self).section
            READ.add(f"{section}.{name}" if section else name)
        return super().__getattribute__(name)


class Loop(Strict):
    """A training loop. Exactly one of `epochs` and `steps` is set. `auto`, by the number of labels, is for fine-tuning alone."""

    epochs: Positive | None
    steps: Literal["auto"] | Count | None
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
    log_every: Count
    checkpoint_every: NotNegative
    augment: NotNegative


class Pretrain(Loop):
    section = "pretrain"
    probes: Natural
    document_mask: bool
    sentences: Annotated[list[Text], Field(min_length=1, max_length=4)] | None


class Finetune(Loop):
    section = "finetune"
    name: str
    seeds: Count
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    class_weights: Literal["none", "balanced"]
    mixup: NotNegative
    cutmix: NotNegative
    resolution: Side | None
    freeze: list[Text] | None
    unfreeze: list[Text] | None
    scratch_lr: Positive | None
    head: Literal["probe", "random"]
    keep_probe: bool
    statistics: Literal["batch", "kept"]  # auto is settled by `init` when composed


class Evaluate(Strict):
    section = "evaluate"
    baselines: list[Literal["chance", "raw", "random_frozen", "frozen", "scratch", "scratch_long"]]
    longer: Count
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
    root: Text | None
    image_size: Literal["auto"] | Side
    normalise: Literal["auto", "data"] | Annotated[list[NotNegative], Field(min_length=2)]
    limit: Count | None
    test_limit: Count | None
    val_fraction: Ratio
    test_fraction: Ratio
    folds: Annotated[int, Field(ge=2, le=1000)] | None
    fold: Natural
    split_seed: Natural
    cache_gb: NotNegative
    max_unreadable: Fraction
    augment: Augment


class Downstream(Strict):
    section = "downstream"
    name: str


class Device(Strict):
    section = "device"
    name: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "bf16"]
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=1024)]
    compile: bool


class Logger(Strict):
    section = "logger"
    name: str


class Config(Strict):
    """One run. The sections that have a config group hold more keys than the base class names: those of the choice."""

    stage: Literal["all", "pretrain", "finetune", "evaluate", "finetune+evaluate"]
    init: Annotated[Text, Field(min_length=1)]
    seed: Natural
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")] | None
    outputs: Annotated[Text, Field(min_length=1)]
    budget: Annotated[str, Field(pattern=r"^[1-9][0-9]*(s|m|h)$")] | None
    on_nan: Literal["recover", "stop"]
    skip_done: bool
    strict: bool
    model: Model
    task: Task
    dataset: Dataset
    downstream: Downstream
    finetune: Finetune
    device: Device
    logger: Logger
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


class Sampling(Strict):
    """The settings of `ptmrun generate`, from words as they were typed; no run has them."""

    model_config = ConfigDict(strict=False)
    prompt: Annotated[str, Field(max_length=2**20)] = ""
    tokens: Count = 100
    temperature: NotNegative = 0.8  # 0: always the likeliest token
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    samples: Count = 1
    seed: Natural = 0


SECTIONS: dict[str, type[Strict]] = {
    "model": Model,
    "task": Task,
    "dataset": Dataset,
    "downstream": Downstream,
    "finetune": Finetune,
    "device": Device,
    "logger": Logger,
}


METHOD_NEEDS = {  # of fine-tuning methods, in words
    "maps": "a network that works at any side",
    "layers": "plain linear or convolutional layers in its blocks",
    "blocks": "residual blocks",
    "values": "layers of keys and values",
    "prefixes": "transformers' own attention",
}


EXPECTED = {
    "name": "letters, digits, . _ - (at most 80)",
    "budget": "a number and s, m or h, such as 20m",
}


def choices(group: str) -> list[str]:
    """The names of a config group: its files."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def summary(group: str, name: str) -> str:
    """The one line that describes a choice: its first comment."""
    lines = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return next(x[2:].strip() for x in lines if x.startswith("# ") and "@package" not in x)


def elsewhere(group: str, name: str) -> dict[str, Any]:
    """What a choice sets outside of its own group, by dotted key."""
    block = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return flat({k: v for k, v in block.items() if k not in (group, "defaults")})


def overridden(experiment: str) -> dict[str, str]:
    """The choices that an experiment makes in its defaults: `override /dataset: digits` -> {dataset: digits}."""
    block = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    lines = [(k.removeprefix("override /"), v) for line in block.get("defaults", []) if line != "_self_" for k, v in line.items()]
    return {group: choice for group, choice in lines if group in SECTIONS}


class Spec(NamedTuple):
    module: str | None
    needs: frozenset[str]
    provides: frozenset[str]
    requires: frozenset[str]
    types: dict[str, str]


@functools.cache
def spec(group: str, name: str) -> Spec:
    """The `spec` block of a choice, always from the installed YAML, never from a saved config."""
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    block = yaml.safe_load(text)[group].get("spec", {})
    needs, provides, requires = (frozenset(block.get(k, ())) for k in ("needs", "provides", "requires"))
    return Spec(block.get("module"), needs, provides, requires, block.get("types", {}))


def parse_type(text: str) -> Any:
    """`auto|count` -> Literal["auto"] | Count"""
    union: Any = None
    for word in re.split(r"\|(?![^\[]*\])", text):  # not at the bars within a list
        if word == "null":
            kind: Any = type(None)
        elif word.startswith("["):
            kind = Annotated[list[parse_type(word[1:-1])], Field(min_length=1)]  # type: ignore[misc]
        else:
            kind = TYPES.get(word, Literal[int(word) if word.isdigit() else word])
        union = kind if union is None else union | kind
    return union


@functools.cache
def section(group: str, name: str) -> type[Strict]:
    """The type of a group's section for one choice: the base class and the keys of the choice's `spec.types`."""
    fields: dict[str, Any] = {key: (parse_type(text), ...) for key, text in spec(group, name).types.items()}
    return create_model(f"{group}_{name}", __base__=SECTIONS[group], **fields)


def parse(raw: Any) -> Config:
    """A plain dict -> Config. Raises UserError with one line for every mistake."""
    if not isinstance(raw, dict):
        raise UserError("config: expected a mapping of keys to values")
    secrets.refuse(raw)  # before a message can show it
    mistakes, typed = [], dict(raw)
    names = {}
    for group in SECTIONS:
        part = raw.get(group)
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or name not in choices(group):
            mistakes.append(f"{group}={name}: no such {group}{nearest(str(name), choices(group))}")
            typed.pop(group, None)
            continue
        names[group] = name
        try:
            typed[group] = section(group, name).model_validate(part)
        except ValidationError as error:
            mistakes += explain(error, part or {}, f"{group}.", section(group, name))
            typed.pop(group)
    try:
        config = Config.model_validate(typed)
    except ValidationError as error:
        broken = set(SECTIONS) & (set(raw) - set(typed))
        mistakes += [m for m in explain(error, typed, "", Config) if m.split(":")[0] not in broken | set(SECTIONS)]
        mistakes += misfits(names)
        raise UserError(*mistakes) from None
    before, unfit = set(READ), misfits(names)
    mistakes += contradictions(config)
    READ.intersection_update(before)  # what is read to check a config is not read by the run
    if mistakes or unfit:
        raise UserError(*unfit, *mistakes) if mistakes else Misfit(*unfit)
    return config


def explain(error: ValidationError, raw: dict, prefix: str, kind: type[Strict]) -> list[str]:
    """One line per wrong key: what it is, what was expected, the nearest valid name."""
    wanted: dict[str, list[str]] = {}
    lines = []
    for e in error.errors():
        path: list[str] = []
        value: Any = raw
        where: Any = kind
        for part in e["loc"]:
            if isinstance(value, dict) and part in value and isinstance(part, str):
                value, path = value[part], [*path, part]
            elif isinstance(value, list) and isinstance(part, int):
                value, path = value[part], [*path, str(part)]
            elif e["type"] == "missing" and isinstance(part, str):
                path = [*path, part]
            if isinstance(value, dict) and path:
                field = where.model_fields.get(path[-1])
                where = field.annotation if field and isinstance(field.annotation, type) else where
        key = prefix + ".".join(path)
        if e["type"] == "extra_forbidden":
            lines.append(f"{key}: no such key{nearest(path[-1], where.model_fields)}")
        elif e["type"] == "missing":
            lines.append(f"{key}{MISSING}")
        else:
            text = EXPECTED.get(key) or e["msg"].replace("Input should be ", "").replace("a valid ", "")
            wanted.setdefault(f"{key}={shown(value)}", []).append(text)
    nested = {shorter for shorter in wanted for key in wanted if key.startswith(f"{shorter.split('=')[0]}.")}
    wanted = {key: texts for key, texts in wanted.items() if key not in nested}  # of a union, the branch that got furthest
    return lines + [f"{key}: expected {' or '.join(dict.fromkeys(texts))}" for key, texts in wanted.items()]


def shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def misfits(names: dict[str, str]) -> list[str]:
    """Combinations that cannot work, with the list of what can."""
    lines = []
    if "model" in names and "finetune" in names and not fine_tunes(names["finetune"], names["model"]):
        unmet = spec("finetune", names["finetune"]).requires - spec("model", names["model"]).provides
        wanted = ", ".join(METHOD_NEEDS[x] for x in sorted(unmet))
        fits = [m for m in choices("model") if fine_tunes(names["finetune"], m)]
        methods = [f for f in choices("finetune") if fine_tunes(f, names["model"])]
        lines.append(
            f"model={names['model']} finetune={names['finetune']}: the method needs {wanted}, which the model does not have; "
            f"with finetune={names['finetune']} there is: model={', '.join(fits)}; with model={names['model']}: "
            f"finetune={', '.join(methods)}"
        )
    if "model" in names and "task" in names:
        model = spec("model", names["model"])
        if lacking := spec("task", names["task"]).requires - model.provides:
            fits = [t for t in choices("task") if spec("task", t).requires <= model.provides]
            lines.append(
                f"model={names['model']} task={names['task']}: the task needs {', '.join(sorted(lacking))}, "
                f"which the model does not have; with model={names['model']} there is: task={', '.join(fits)}"
            )
    if "model" in names and "downstream" in names:
        problem = spec("downstream", names["downstream"])
        if lacking := problem.requires - spec("model", names["model"]).provides:
            fits = [m for m in choices("model") if problem.requires <= spec("model", m).provides]
            lines.append(
                f"model={names['model']} downstream={names['downstream']}: the problem needs {', '.join(sorted(lacking))}, which "
                f"the model does not have; with downstream={names['downstream']} there is: model={', '.join(fits)}"
            )
    for group in ("model", "task", "downstream"):
        if group in names and "dataset" in names:
            needs, there = spec(group, names[group]).needs, spec("dataset", names["dataset"]).provides
            if lacking := needs - there:
                fits = [d for d in choices("dataset") if needs <= spec("dataset", d).provides]
                others = [x for x in choices(group) if spec(group, x).needs <= there]
                lines.append(
                    f"{group}={names[group]} dataset={names['dataset']}: the data has no {', '.join(sorted(lacking))}; "
                    f"with {group}={names[group]} there is: dataset={', '.join(fits)}; "
                    f"with dataset={names['dataset']}: {group}={', '.join(others)}"
                )
    return lines


def fine_tunes(method: str, model: str) -> bool:
    return spec("finetune", method).requires <= spec("model", model).provides


def contradictions(config: Config) -> list[str]:
    """Keys that are right alone and wrong together."""
    lines = []
    for name, loop in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if (loop.epochs is None) == (loop.steps is None):
            lines.append(f"{name}.epochs, {name}.steps: set exactly one of them, the other to null")
        if loop.steps == "auto" and name == "pretrain":
            lines.append("pretrain.steps=auto: expected a number (finetune.steps alone follows from the number of labels)")
        if loop.layer_decay == "auto" and name == "pretrain":
            lines.append("pretrain.layer_decay=auto: expected a number (finetune.layer_decay alone follows from the labels)")
        if loop.accumulate > loop.batch_size:
            lines.append(f"{name}.accumulate={loop.accumulate}: expected at most {name}.batch_size={loop.batch_size}")
        if loop.min_lr > loop.lr:
            lines.append(f"{name}.min_lr={loop.min_lr:g}: expected at most {name}.lr={loop.lr:g}")
    if isinstance(config.finetune.resolution, int) and "maps" not in spec("model", config.model.name).provides:
        fits = [m for m in choices("model") if "maps" in spec("model", m).provides]
        lines.append(
            f"finetune.resolution={config.finetune.resolution}: model={config.model.name} works at one side only; "
            f"there is: model={', '.join(fits)}"
        )
    if config.pretrain.document_mask and "sentence_pairs" in spec("task", config.task.name).requires:
        why = f"task={config.task.name} reads pairs of texts, which are not packed"
        lines.append(f"pretrain.document_mask=true: {why}; leave it out")
    if config.stage == "evaluate" and origin(config.init) != "run":
        lines.append("stage=evaluate: needs init=<run folder> of a run that fine-tuned")
    if config.budget is not None and config.stage != "all":
        lines.append(f"budget={config.budget}: sizes the three stages together, so it goes with stage=all")
    return lines


def load(path: Path) -> Config:
    """The saved config of a run folder, read as data: no tags, no interpolations, the same strict parse.

    Keys that have been added since it was saved take their defaults, and stderr says so, once for runs that lack the same.
    """
    raw = load_plain(path)
    try:
        return parse(raw)
    except UserError as error:
        if not all(line.endswith(MISSING) for line in error.args):
            raise
        lacking = [line.removesuffix(MISSING) for line in error.args]
    from ptmrun.compose import defaults

    added = defaults(raw, lacking)
    for key, value in added.items():
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, raw)[last] = value
    config = parse(raw)
    tell(path, ", ".join(f"{key}={shown(value)}" for key, value in added.items()))
    return config


def tell(path: Path, added: str) -> None:
    """Says once what configs like this one lacked."""
    if added not in TOLD:
        TOLD.add(added)
        what = "of an older version; taken by default, as in others that lack the same"
        print(f"ptmrun: {printable(str(path))}: {what}: {added}", file=sys.stderr)


def load_plain(path: Path) -> Any:
    """A YAML file as plain data. Raises UserError on tags, aliases, interpolations and what is no YAML."""
    raw = plain_yaml(path)
    if found := re.search(r"\$\{.*?(\}|$)", str(raw)):
        raise UserError(f"{path}: holds the interpolation {shown(found[0])}; a saved config has plain values only")
    return raw


def dump(config: Config) -> str:
    """The complete config as YAML text that `load` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def plain(config: Config) -> dict[str, Any]:
    """The config as nested plain values, with the keys of each choice."""
    values = {k: getattr(config, k) for k in type(config).model_fields}
    return {k: v.model_dump() if isinstance(v, Strict) else v for k, v in values.items()}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


def replace(config: Config, **changes: Any) -> Config:
    """A new config with dotted keys changed (`pretrain__steps=10` for pretrain.steps), parsed as strictly as any."""
    raw = plain(config)
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = raw
        for part in parents:
            target = target[part]
        target[last] = value
    return parse(raw)
