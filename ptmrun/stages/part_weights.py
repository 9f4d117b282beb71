"""The weights that parts of a model begin with, such as the towers of CLIP: those of runs, or from outside."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptmrun.config import parsing
from ptmrun.config.init_source import origin
from ptmrun.config.schema import Config
from ptmrun.errors import UserError
from ptmrun.models import library_format, pretrained
from ptmrun.models.base import Encoder, Part, settings
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, PROCESSOR, START, source
from ptmrun.stages.context import Context
from ptmrun.stages.initial_weights import load_outside, outside_options
from ptmrun.stages.networks import family_of, modality_of
from ptmrun.storage import tensor_files
from ptmrun.training import device


class Weights(NamedTuple):
    """Of a run: its encoder's folder, its config and its tokenizer, if it has one."""

    run: Run
    cfg: Config
    folder: Path
    tokenizer: Path | None


def begun(cfg: Config) -> Mapping[str, Part]:
    """The parts of a run's model that begin with weights of their own, by name; none where all of it goes on from others."""
    return family_of(cfg).parts(cfg.model) if cfg.init == "random" else {}


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Errors of what `init` names are those of a part's."""
    try:
        yield
    except UserError as error:
        key = f"model.{name}_init="
        lines = [re.sub(r"^init=", key, line) for line in error.args]
        raise UserError(*(line if line.startswith("model.") else f"{key}{line}" for line in lines)) from None


def of_run(part: Part) -> Weights:
    """Raises UserError where the run is of another model, or has pretrained none."""
    run = Run.open(Path(part.init))
    cfg = config_file.load(run.sound("config.yaml"))
    if cfg.model.name != part.model:
        raise UserError(f"init={part.init}: is a run of model={cfg.model.name}; expected one of model={part.model}")
    folder = source(run, cfg, ENCODER)
    if folder is None:
        hint = f"has no {ENCODER}: it is not pretrained, or not to its end (ptmrun resume {run.typed})"
        raise UserError(f"init={part.init}: that run {hint}")
    return Weights(run, cfg, folder, source(run, cfg, PROCESSOR))


def by_folder(cfg: Config) -> Config:
    """With the folders of the runs that parts begin with in place of what names them, such as `latest`, which will soon name
    another. Raises UserError for those that cannot be begun with, and where all weights come from elsewhere."""
    changes = {}
    for name, part in begun(cfg).items():
        if origin(part.init) == "run":
            with named(name):
                changes[f"model__{name}_init"] = str(of_run(part).run.folder)
        elif origin(part.init) == "file" and not Path(part.init).exists():
            raise UserError(f"model.{name}_init={part.init}: no such file")
    if cfg.init != "random" and (parts := family_of(cfg).parts(cfg.model)):
        saved = config_file.load(Run.open(Path(cfg.init)).sound("config.yaml")).model if origin(cfg.init) == "run" else None
        for name, part in parts.items():
            if getattr(saved, f"{name}_init", None) != part.init:  # else it is what that run began with
                raise UserError(f"model.{name}_init={part.init}: init={cfg.init} has weights for all of the model; leave one out")
    return parsing.replace(cfg, **changes) if changes else cfg


def settle_parts(run: Run, cfg: Config) -> tuple[Config, list[str], int | None]:
    """(the config with the settings, the normalisation and the tokenizer that belong to the weights of parts; notes; tokens of a
    text that they know, None: any number). Of a run that has copied them, the config as it is."""
    if run.path(START).exists():
        return cfg, [], None
    changes, notes, lengths = dict[str, Any](), list[str](), list[int]()
    for name, part in begun(cfg).items():
        with named(name):
            own, more, longest = settled(cfg, name, part)
        changes |= own
        notes += [f"{key}={value}: of model.{name}_init={part.init}" for key, value in own.items()] + more
        lengths += [longest] if longest else []
    cfg = parsing.replace(cfg, **{key.replace(".", "__"): value for key, value in changes.items()}) if changes else cfg
    return cfg, notes, min(lengths, default=None)


def settled(cfg: Any, name: str, part: Part) -> tuple[dict[str, Any], list[str], int | None]:
    """What belongs to the weights of a part: ({dotted key: value}, notes, tokens of a text that they know)."""
    typed, folder, tokenizer, notes = getattr(cfg.model, f"{name}_options") or [], None, None, list[str]()
    if origin(part.init) == "run":
        weights = of_run(part)
        own = weights.cfg.model.model_dump(exclude={"name", *part.shared})
        options, folder, tokenizer = [*settings(own), *typed], weights.folder, weights.tokenizer
    else:
        options = [*typed, *settings(outside_options(part.init, part.family, part.options))]
        folder = None if part.init == "pretrained" else pretrained.place(part.init)
        tokenizer = Path(part.init) if folder and (folder / "tokenizer.json").is_file() else None
    changes: dict[str, Any] = {f"model.{name}_options": options} if options else {}
    if "tokenizer" not in part.shared:
        numbers = pretrained.normalisation(str(folder or part.init), part.family)
        each = [x for x in numbers for _ in range(3)] if len(numbers) == 2 else numbers  # of gray images: also for colour
        return changes | modality_of(cfg).as_published(cfg, lambda: each), notes, None
    if tokenizer and cfg.model.tokenizer == "auto":
        changes["model.tokenizer"] = str(tokenizer)
    elif tokenizer and cfg.model.tokenizer != str(tokenizer):
        why = f"the weights of model.{name}_init={part.init} are of the tokens that come with them"
        notes.append(f"Warning: model.tokenizer={cfg.model.tokenizer}: {why}")
    return changes, notes, positions(cfg, part, folder)


def positions(cfg: Config, part: Part, folder: Path | None) -> int | None:
    """Tokens that weights in a folder know places of, None: any number. Raises UserError for texts that are to be longer."""
    known, length = pretrained.positions(folder) if folder else None, getattr(cfg.model, "length", None)
    if known is not None and isinstance(length, int) and length > known:
        raise UserError(f"model.length={length}: {part.init} knows {known} positions; expected at most {known}")
    return known


def take_parts(context: Context, parts: Mapping[str, Part]) -> None:
    """Copies the weights of parts into the run, which needs what they are from no more then, and notes where that is. Raises
    UserError when they do not fit, or are not those that the run began with."""
    run, cfg, start = context.run, context.cfg, context.run.path(START)
    before = run.manifest["parents"]
    if start.exists():
        tensors = tensor_files.load(start)[0]
        there = [tensor_files.sha256(tensor_files.part(tensors, f"{name}.")) for name in parts]
        if there != [p["weights_sha256"] for p in before]:
            raise UserError(f"{start}: its weights have changed since the run began; refused")
        return
    encoder, parents = context.encoder(), []
    attention = device.attention(context.device, cfg.device.precision)
    for name, part in parts.items():
        own = part.family.build(part.options, getattr(context.processor.spec, name), attention)
        with named(name):
            origin_name, notes = load(part, own)
        for line in notes:
            run.say(f"  {re.sub('^init=', f'model.{name}_init=', line)}")
        if own.trims:
            own.trim()
        getattr(encoder, name).load_state_dict(own.state_dict())
        parents.append({"run": origin_name, "weights_sha256": tensor_files.sha256(own.state_dict()), "data": None})
        if before and parents != before[: len(parents)]:
            raise UserError(f"model.{name}_init={part.init}: its weights are not those that the run began with; refused")
    run.update(parents=parents)
    run.write("config.yaml", parsing.dump(cfg))  # complete from here on, as what it was settled by may go
    tensor_files.save(start, encoder.state_dict())


def load(part: Part, encoder: Encoder) -> tuple[str, list[str]]:
    """Gives an encoder the weights that a part begins with: (what they are from, notes)."""
    if origin(part.init) == "run":
        weights = of_run(part)
        notes = encoder.adjusted(library_format.tensors_of(weights.folder))[1]
        encoder.load(weights.folder)
        return weights.run.folder.resolve().name, [f"init={part.init}: the weights of that run", *(f"  {line}" for line in notes)]
    return load_outside(encoder, part.init, part.model, part.family)
