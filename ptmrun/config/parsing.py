"""A plain dict of settings -> a typed config, with one line for every mistake; and back."""

from typing import Any

import yaml
from pydantic import ValidationError

from ptmrun.config import choices, secrets, specs
from ptmrun.config.compatibility import contradictions, incompatible
from ptmrun.config.schema import BASES, SECTIONS, Config, Strict, VerbSettings, base, foreign
from ptmrun.config.watched import Watched, bare, watch
from ptmrun.errors import Misfit, UserError, nearest

MISSING = ": missing"
EXPECTED = {
    "name": "letters, digits, . _ - (at most 80)",
    "budget": "a number and s, m or h, such as 20m",
}


def parse(raw: Any) -> Config:
    """A plain dict -> Config. Raises UserError with one line for every mistake."""
    if not isinstance(raw, dict):
        raise UserError("config: expected a mapping of keys to values")
    secrets.refuse(raw)  # before a message can show it
    mistakes, typed = [], dict(raw)
    names: dict[str, str] = {}
    kind = kind_of(raw)
    for group in SECTIONS:
        part = raw.get(group)
        name = part.get("name") if isinstance(part, dict) else None
        if not isinstance(name, str) or name not in choices.names(group):
            mistakes.append(choices.no_such(group, str(name)))
            typed.pop(group, None)
            continue
        names[group] = name
        try:
            typed[group] = specs.section(group, name, kind).model_validate(part)
        except ValidationError as error:
            mistakes += explain(error, part or {}, f"{group}.", specs.section(group, name, kind))
            typed.pop(group)
    for section in ("pretrain", "evaluate"):
        if not isinstance(raw.get(section), dict):
            continue
        try:
            typed[section] = base(section, kind).model_validate(raw[section])
        except ValidationError as error:
            mistakes += explain(error, raw[section], f"{section}.", base(section, kind))
            typed.pop(section, None)
    reported = {name for name in BASES if name in raw and name not in typed}
    try:
        config = Config.model_validate(typed)
    except ValidationError as error:
        mistakes += [m for m in explain(error, typed, "", Config) if m.split(":")[0] not in reported]
        mistakes += incompatible(names)
        raise UserError(*mistakes) from None
    unfit = incompatible(names)
    mistakes += contradictions(config)
    if mistakes or unfit:
        raise UserError(*unfit, *mistakes) if mistakes else Misfit(*unfit)
    return config


def kind_of(raw: dict[str, Any]) -> str:
    """The kind of data that the data set of a config is of; "" where it names none."""
    part = raw.get("dataset")
    name = part.get("name") if isinstance(part, dict) else None
    return specs.kind(name) if isinstance(name, str) and name in choices.names("dataset") else ""


def leave_out_foreign(raw: dict[str, Any]) -> list[str]:
    """Takes the settings of other kinds of data out of a config; returns their dotted keys."""
    removed = []
    for key in sorted(foreign(kind_of(raw))):
        section, name = key.split(".")
        if isinstance(part := raw.get(section), dict) and name in part:
            del part[name]
            removed.append(key)
    return removed


def parse_words(kind: type[VerbSettings], words: list[str]) -> Any:
    """The settings of a verb from `key=value` words; of a key that is given twice, the last. Raises UserError."""
    raw = dict(word.split("=", 1) for word in words)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(*explain(error, raw, "", kind)) from None


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


def plain(config: Any) -> dict[str, Any]:
    """The config as nested plain values, with the keys of each choice."""
    config = bare(config)
    values = {k: getattr(config, k) for k in type(config).model_fields}
    return {k: v.model_dump() if isinstance(v, Strict) else v for k, v in values.items()}


def replace(config: Any, **changes: Any) -> Any:
    """A new config with dotted keys changed (`pretrain__steps=10` for pretrain.steps), parsed as strictly as any. Where the reads
    of `config` are noted, those of the new one are too."""
    raw = plain(config)
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = raw
        for part in parents:
            target = target[part]
        target[last] = value
    return watch(parse(raw), config.noted) if isinstance(config, Watched) else parse(raw)


def dump(config: Any) -> str:
    """The complete config as YAML text that `config_file.load` reads back."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
