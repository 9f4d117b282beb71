"""Overrides in Hydra's grammar, and Hydra's compose. With compose.py and sweeps/ all that knows Hydra."""

import functools
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptmrun.config import choices, parsing, schema, secrets
from ptmrun.errors import UserError, nearest


def sort_overrides(overrides: list[str], sweep: bool) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Overrides -> {group: choice}, {dotted key: value as text}, mistakes. A `+` before a known key means nothing more."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups: dict[str, str] = {}
    values: dict[str, str] = {}
    mistakes = []
    secrets.refuse({key.lstrip("+"): text for key, _, text in (o.partition("=") for o in overrides)})
    for text in overrides:
        if any("\ud800" <= c <= "\udfff" for c in text):
            mistakes.append(f"{text}: this name is not UTF-8, as settings are; rename the file or folder, or point a link at it")
            continue
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            key, equals, value = text.partition("=")
            how = f"; to mean this text, type {pasted(key, value)}" if key and equals else ""
            mistakes.append(f"{text}: expected key=value in Hydra's grammar{how}")
            continue
        key = override.key_or_group
        if not key:
            mistakes.append(f"{text}: expected key=value; the key is missing")
        elif override.is_delete():
            mistakes.append(f"{text}: a key cannot be removed; set it to null where that is allowed")
        elif override.is_sweep_override() and not sweep:
            how = f"; if it is one, type {pasted(key, text.split('=', 1)[1])}"
            mistakes.append(f"{text}: several values are a sweep, which needs -m{how}")
        elif key.split(".")[0].split("/")[0] in ("hydra", "sweep"):
            if not sweep:
                mistakes.append(f"{text}: settings of hydra and sweep need -m")
        elif key.removesuffix(".name") in schema.SECTIONS and key.endswith(".name"):
            mistakes.append(f"{text}: the name comes with the choice; type {text.replace('.name=', '=', 1).lstrip('+')}")
        elif key in choices.GROUPS:
            sweeps = override.is_sweep_override()
            wanted = list(override.sweep_string_iterator()) if sweeps else [parsing.shown(override.value())]
            there = choices.names(key)
            allowed = {*there, "null"} if key == "experiment" else set(there)
            mistakes += [choices.no_such(key, c) for c in wanted if c not in allowed]
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
        with initialize_config_dir(str(choices.CONF), version_base="1.3", job_name="ptmrun"):
            return settings_only(OmegaConf.to_container(hydra_compose("config", [*overrides, *searchpath()]), resolve=True), keep)
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


def searchpath() -> list[str]:
    """Where Hydra finds the YAML files of plug-ins, as an override."""
    places = [quoted(folder).replace("'", "'file://", 1) for name, folder in choices.folders().items() if name != "ptmrun"]
    return [f"hydra.searchpath=[{','.join(places)}]"] if places else []


def quoted(text: Path | str) -> str:
    """A path or other text as a value in Hydra's grammar."""
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def assigned(key: str, text: Path | str) -> str:
    """A key with a text as its value, quoted in Hydra's grammar where that would take it for something else."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    plain = f"{key}={text}"
    try:
        override = OverridesParser.create().parse_override(plain)
    except HydraException:
        return f"{key}={quoted(text)}"
    return plain if not override.is_sweep_override() and override.value() == str(text) else f"{key}={quoted(text)}"


def pasted(key: str, text: Path | str) -> str:
    """A key with a text as its value, as it is typed in a shell."""
    word = f"{key}={quoted(text)}"
    plain = not set(word) & set('"$`!') and shlex.split(f'"{word}"') == [word]
    return f'"{word}"' if plain else shlex.quote(word)


def as_text(line: str, values: dict[str, str]) -> str:
    """A mistake that parsing found, and how the value is typed where it was to be a text; `values` as they were typed."""
    key, _, rest = line.partition("=")
    typed = values.get(key, "")
    if not typed or not re.search(r"expected .*\b(string|letters)\b", rest) or typed[0] in "'\"" or "${" in typed:
        return line
    return f"{line}; to mean this text, type {pasted(key, typed)}"


def hydra_main(job: Callable[[Any], None], argv: list[str]) -> None:
    import hydra

    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=os.fspath(choices.CONF), config_name="config", version_base="1.3")(job)()
