"""The weights that a run starts from: published ones, a file, or another run's."""

from pathlib import Path
from typing import Any

from ptmrun.config import parsing
from ptmrun.config.init_source import OUTSIDE, origin
from ptmrun.config.schema import Config
from ptmrun.errors import UserError
from ptmrun.models import library_format, pretrained
from ptmrun.models.base import Encoder, Family
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, START, parent_of, source, unfinished
from ptmrun.stages.context import Context
from ptmrun.stages.networks import family_of, modality_of
from ptmrun.storage import tensor_files


def as_published(cfg: Config) -> tuple[Config, list[str], int | None]:
    """What is auto in a model that weights from outside are for, and in how images become its input, is as published instead of
    by the data; notes; and the tokens of a text that the weights know places of, None: any number."""
    if origin(cfg.init) not in OUTSIDE:
        return cfg, [], None
    family = family_of(cfg)
    chosen = {f"model.{k}": v for k, v in outside_options(cfg.init, family, cfg.model).items()}
    chosen |= modality_of(cfg).as_published(cfg, lambda: pretrained.normalisation(cfg.init, family))
    place = None if cfg.init == "pretrained" else pretrained.place(cfg.init)
    if place and getattr(cfg.model, "tokenizer", None) == "auto" and (place / "tokenizer.json").is_file():
        chosen["model.tokenizer"] = cfg.init
    notes = [f"{k}={v}: as published, for init={cfg.init} (if its weights have another, type it)" for k, v in chosen.items()]
    cfg = parsing.replace(cfg, **{k.replace(".", "__"): v for k, v in chosen.items()})
    return cfg, notes, pretrained.positions(place) if place else None


def outside_options(init: str, family: Family, options: Any) -> dict[str, Any]:
    """Of a model's options those that are auto, as weights from outside were published, or as a folder's config.json says."""
    values = {k: v for k, v in family.as_published.items() if getattr(options, k) == "auto"}
    if (family.shape or family.described) and init != "pretrained" and (place := pretrained.place(init)).is_dir():
        values |= pretrained.described(options, family, pretrained.library_config(place / "config.json"))
    return values


def load_outside(encoder: Encoder, init: str, model: str, family: Family) -> tuple[str, list[str]]:
    """Gives an encoder published weights, or those of a file, folder or hub id: (what they are called, notes). Raises UserError
    when they do not fit."""
    if not encoder.from_library:
        raise UserError(f"init={init}: model={model} takes the weights of runs only (init=RUN)")
    if init == "pretrained":
        name, tensors, theirs = pretrained.published(encoder.net, encoder.kind, family.published)
    else:
        name, tensors, theirs = pretrained.read(init)
    return name, pretrained.load(encoder, tensors, theirs, name)


def take_outside(context: Context) -> None:
    """Copies the published weights or the file that `init` names into the run, which needs them no more then, and notes where
    they are from. Raises UserError when they do not fit, or are not those that the run began with."""
    run, cfg, start = context.run, context.cfg, context.run.path(START)
    if not start.exists():
        encoder = context.encoder()
        name, notes = load_outside(encoder, cfg.init, cfg.model.name, context.family)
        for line in notes:
            run.say(f"  {line}")
        state = encoder.state_dict()
        parent = {"run": name, "weights_sha256": tensor_files.sha256(state), "data": None}
        if (before := run.manifest["parents"]) and before != [parent]:
            raise UserError(f"init={cfg.init}: its weights are not those that the run began with; refused")
        run.update(parents=[parent])
        tensor_files.save(start, state)
    elif [tensor_files.sha256(tensor_files.load(start)[0])] != [p["weights_sha256"] for p in run.manifest["parents"]]:
        raise UserError(f"{start}: its weights have changed since the run began; refused")


def take_parent(context: Context) -> None:
    """Notes the run that `init` names, and says what of its encoder is adapted to other images. Raises UserError when its
    weights or data are not what they were, or do not fit."""
    run, cfg, start = context.run, context.cfg, context.run.path(START)
    parent = parent_of(cfg, start)
    if (before := run.manifest["parents"]) and before != [parent]:
        raise UserError(f"init={cfg.init}: its weights have changed since the run began; refused")
    if parent["data"] is not None and not context.data.known_as(parent["data"]):
        raise UserError(f"dataset={cfg.dataset.name}: the data has changed since {cfg.init} was made; refused")
    if not start.exists() and (tensors := unfinished(Run.open(Path(cfg.init)))):
        tensor_files.save(start, tensors)
    run.update(parents=[parent])
    if parent["data"] is None:
        for line in transferred(context):
            run.say(f"  {line}")


def transferred(context: Context) -> list[str]:
    """What is adapted in the encoder of a run on other data. Raises UserError when it does not fit these."""
    run, cfg = context.run, context.cfg
    encoder, notes = context.encoder(), []
    if folder := source(run, cfg, ENCODER):
        notes = encoder.adjusted(library_format.tensors_of(folder))[1]
    elif file := source(run, cfg, START):
        notes = encoder.adjusted(tensor_files.load(file)[0])[1]
    try:
        context.starting_encoder()
    except UserError as error:
        parent = config_file.load(Run.open(Path(cfg.init)).sound("config.yaml"))
        raise context.data.misfit(cfg, parent, error) from None
    return [*notes, *context.data.adapted(encoder)]
