"""Overrides -> the config of one run, by Hydra's compose. Every mistake is found at once, and torch is not imported."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptmrun.config import schema as config
from ptmrun.config import secrets
from ptmrun.config.init_source import OUTSIDE, origin
from ptmrun.errors import UserError, nearest

LARGE_SCRATCH_LR = 1e-3  # AdamW's, of networks that weights from outside are for: at 3e-3 MiniLM's stays at chance


OWN = ("stage", "name", "outputs", "budget", "device", "logger", "strict", "skip_done")  # not inherited from the run of `init`


def compose(overrides: list[str], saved: config.Config | None = None) -> config.Config:
    """Overrides -> the config of one run; with a saved config, that one with what the overrides change.

    Raises UserError with all mistakes at once.
    """
    groups, values, mistakes = sort_overrides(overrides, sweep=False)
    if saved and "init" in values:
        mistakes.append(f"init={values['init']}: a run that is resumed or forked keeps its weights; for others make a new run")
    parent, own = (config.plain(saved), ()) if saved else (parent_config(values), OWN)
    experiment = groups.get("experiment")
    chosen = (config.overridden(experiment) if experiment else {}) | groups
    if parent:
        groups = {g: parent[g]["name"] for g in config.SECTIONS if g not in own} | chosen
    base = [f"{group}={choice}" for group, choice in groups.items()]
    known = composed_choices(*base)
    good = []
    for key, text in values.items():
        if wrong := unknown(key, known):
            mistakes.append(wrong)
        else:
            good.append(f"{key}={text}")
    raw = compose_raw(base + good)
    typed = {g.split("=")[0] for g in good}
    brought = {k for k in config.elsewhere("experiment", experiment) if unknown(k, raw) is None} if experiment else set()
    published_rates(raw, typed | brought)
    if parent:
        raw = inherit(raw, parent, own, set(chosen), typed | brought)
    one_length(raw, typed, brought)
    try:
        parsed = config.parse(raw)
    except UserError as error:
        if not mistakes:
            raise
        raise UserError(*mistakes, *error.args) from None
    if mistakes:
        raise UserError(*mistakes)
    return parsed


def sort_overrides(overrides: list[str], sweep: bool) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Overrides -> {group: choice}, {dotted key: value as text}, mistakes. A `+` before a known key means nothing more."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups: dict[str, str] = {}
    values: dict[str, str] = {}
    mistakes = []
    secrets.refuse({key.lstrip("+"): text for key, _, text in (o.partition("=") for o in overrides)})
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            mistakes.append(f"{text}: expected key=value in Hydra's grammar (quote what is special in it)")
            continue
        key = override.key_or_group
        if not key:
            mistakes.append(f"{text}: expected key=value; the key is missing")
        elif override.is_delete():
            mistakes.append(f"{text}: a key cannot be removed; set it to null where that is allowed")
        elif override.is_sweep_override() and not sweep:
            mistakes.append(f"{text}: several values are a sweep, which needs -m")
        elif key.split(".")[0].split("/")[0] in ("hydra", "sweep"):
            if not sweep:
                mistakes.append(f"{text}: settings of hydra and sweep need -m")
        elif key.removesuffix(".name") in config.SECTIONS and key.endswith(".name"):
            mistakes.append(f"{text}: the name comes with the choice; type {text.replace('.name=', '=', 1).lstrip('+')}")
        elif key in config.GROUPS:
            sweeps = override.is_sweep_override()
            wanted = list(override.sweep_string_iterator()) if sweeps else [config.shown(override.value())]
            there = config.choices(key)
            allowed = {*there, "null"} if key == "experiment" else set(there)
            mistakes += [f"{key}={c}: no such {key}{nearest(c, there)}" for c in wanted if c not in allowed]
            if not sweep and wanted[0] in there:
                groups[key] = wanted[0]
        else:
            values[key] = text.split("=", 1)[1]
    return groups, values, mistakes


def parsed(overrides: list[str]) -> list[Any]:
    """Hydra's own parse of overrides that are known to be right."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_overrides(overrides)


def compose_raw(overrides: list[str], keep: str = "") -> dict[str, Any]:
    """Hydra's compose as a plain dict, without the `spec` blocks and, unless kept, without what is no part of a run."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    outer = GlobalHydra.instance().hydra  # that of a sweep, whose jobs are composed here too
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.CONF), version_base="1.3", job_name="ptmrun"):
            return settings_only(OmegaConf.to_container(hydra_compose("config", overrides), resolve=True), keep)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None
    finally:
        GlobalHydra.instance().hydra = outer


@functools.cache
def composed_choices(*choices: str) -> dict[str, Any]:
    """What choices of groups give, to be read only: once for all jobs of a sweep that have the same."""
    return compose_raw(list(choices))


def settings_only(raw: Any, keep: str) -> dict[str, Any]:
    """The composed config without what describes it."""
    raw = {k: v for k, v in raw.items() if k == keep or k not in ("experiment", "certificate", "sweep")}
    return {k: {n: v for n, v in part.items() if n != "spec"} if isinstance(part, dict) else part for k, part in raw.items()}


def unknown(key: str, raw: dict[str, Any]) -> str | None:
    """What is wrong with a dotted key, if anything."""
    where: Any = raw
    *parents, last = key.split(".")
    for depth, part in enumerate([*parents, last]):
        if not isinstance(where, dict) or part not in where:
            names = where if isinstance(where, dict) else {}
            near = nearest(part, names)
            if "did you mean" not in near and (home := [k for k in raw if isinstance(raw[k], dict) and last in raw[k]]):
                near = f" (did you mean {' or '.join(f'{k}.{last}' for k in home)}?)"
            return f"{'.'.join([*parents, last][: depth + 1])}: no such key{near}"
        where = where[part]
    return None


def parent_config(values: dict[str, str]) -> dict[str, Any] | None:
    """The saved config of the run that `init` names; none when it names something else."""
    init = values.get("init", "random").strip("'\"")
    if origin(init) != "run":
        return None
    from ptmrun.runs.folder import Run

    run = Run.open(Path(init))
    # the folder itself, not `latest`, which will soon name the run to come
    return config.plain(config.load(run.path("config.yaml"))) | {"init": str(run.folder)}


def defaults(saved: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """What composing the same choices now gives for keys that a saved config lacks."""
    raw = compose_raw([f"{group}={saved[group]['name']}" for group in config.SECTIONS])  # which is changed below
    published_rates(raw | {"init": saved.get("init", raw["init"])}, set())
    known = config.flat(raw)
    return {key: known[key] for key in keys if key in known}


def inherit(
    raw: dict[str, Any], parent: dict[str, Any], own: tuple[str, ...], chosen: set[str], given: set[str]
) -> dict[str, Any]:
    """A run that starts from another one keeps that one's settings, but for its own, chosen groups and the keys given.

    What a choice sets in other groups comes and goes with it: the labels a class of a data set, the learning rate of a task.
    """
    result = {k: raw[k] if k in own or k in chosen or k not in parent else parent[k] for k in raw}
    with_it = set()
    for group in chosen & set(config.SECTIONS) - set(own):
        before, after = parent[group]["name"], raw[group]["name"]
        if before != after:
            was, known = config.elsewhere(group, before), config.flat(parent)
            with_it |= {k for k, v in was.items() if known.get(k) == v} | set(config.elsewhere(group, after))
    for key in (given | with_it) - {"init"}:
        *parents, last = key.split(".")
        source, target = raw, result
        for part in parents:
            source, target = source[part], target[part]
        target[last] = source[last]
    return result


def one_length(raw: dict[str, Any], typed: set[str], brought: set[str]) -> None:
    """Of `epochs` and `steps`, the one that was typed, else the one that an experiment brought, takes the other's place."""
    for section in ("pretrain", "finetune"):
        both = {f"{section}.epochs", f"{section}.steps"}
        given = both & typed or both & brought
        if len(given) == 1 and isinstance(raw[section], dict):
            [other] = both - given
            raw[section][other.removeprefix(f"{section}.")] = None


def published_rates(raw: dict[str, Any], given: set[str]) -> None:
    """Weights from outside are trained at the rate for published ones, unless a rate was given, and keep their statistics; their
    networks from scratch at one that large networks bear."""
    outside, tuning = origin(raw["init"]) in OUTSIDE, raw["finetune"]
    if tuning["statistics"] == "auto":
        tuning["statistics"] = "kept" if outside else "batch"
    if outside:
        if tuning["layer_decay"] == "auto":
            tuning["layer_decay"] = config.LAYER_DECAY
        for section in ("pretrain", "finetune"):
            loop = raw[section]
            if loop["published_lr"] and f"{section}.lr" not in given:
                loop["lr"] = loop["published_lr"]
        if "finetune.scratch_lr" not in given and tuning["optimizer"] == "adamw":
            tuning["scratch_lr"] = LARGE_SCRATCH_LR


def quoted(path: Path) -> str:
    """A path as a value in Hydra's grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def hydra_main(job: Callable[[Any], None], argv: list[str]) -> None:
    import hydra

    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=os.fspath(config.CONF), config_name="config", version_base="1.3")(job)()
