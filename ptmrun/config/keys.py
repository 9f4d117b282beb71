"""What each key is: its type from the schema, its default and its meaning from the YAML files, for the help and the docs."""

import functools
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from ptmrun.config import choices, schema, specs
from ptmrun.config.parsing import shown
from ptmrun.config.schema import Strict
from ptmrun.storage.safe_read import PlainLoader

LINE = re.compile(r"( *)([A-Za-z_]\w*):(.*)")
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PLAIN = {bool: "true or false", str: "text", int: "whole number", float: "number", type(None): "null"}
UNBOUNDED = 2**31


class Key(NamedTuple):
    """A key as it is explained: its dotted name, type in words, default as it is typed, and meaning ("": its YAML has none)."""

    name: str
    type: str
    default: str
    meaning: str


@functools.cache
def common() -> tuple[Key, ...]:
    """The keys that runs and sweeps have whatever is chosen, in the order of conf/config.yaml."""
    text = (choices.CONF / "config.yaml").read_text(encoding="utf-8")
    known, meanings = read(text), comments(text)
    flat = schema.flat({key: value for key, value in known.items() if key not in ("defaults", "hydra")})
    return tuple(Key(key, type_of(key), as_typed(value), meaning(key, meanings)) for key, value in flat.items())


@functools.cache
def own(group: str, name: str) -> tuple[Key, ...]:
    """The keys that a choice of a group adds, with those of the choice that it is built on."""
    text, shared = choices.text(group, name), {key.name for key in common()}
    block = read(text)
    lower = next((line for line in block.get("defaults", []) if isinstance(line, str) and line != "_self_"), None)
    part = {k: v for k, v in (block.get(group) or {}).items() if k not in ("name", "spec")}
    flat, meanings = schema.flat({group: part}), comments(text)
    if group not in schema.SECTIONS:
        return ()
    section = specs.section(group, name, specs.kind(name) if group == "dataset" else "")
    new = [
        Key(key, in_section(section, key), as_typed(value), meanings.get(key, ""))
        for key, value in flat.items()
        if key not in shared
    ]
    return (*(key for key in (own(group, lower) if lower else ()) if key.name not in flat), *new)


@functools.cache
def settings(group: str, name: str) -> dict[str, str]:
    """What a choice sets beside the keys of its own, to be read only: {group: choice} and {dotted key: value as it is typed}."""
    block = read(choices.text(group, name))
    chosen = [line for line in block.pop("defaults", []) if isinstance(line, dict)]
    result = {key.removeprefix("override /"): str(choice) for line in chosen for key, choice in line.items()}
    shared = {key.name for key in common()}
    values = schema.flat({key: value for key, value in block.items() if key != "certificate"})
    own_part = f"{group}." if group in schema.SECTIONS else "-"
    return result | {k: as_typed(v) for k, v in values.items() if k in shared or not k.startswith(own_part)}


def read(text: str) -> dict[str, Any]:
    """A YAML file of conf/."""
    return PlainLoader(text).get_single_data() or {}


def setters(key: str) -> Iterator[tuple[str, str]]:
    """The choices that set a key otherwise than conf/config.yaml: (group=choice, value)."""
    for group in choices.GROUPS:
        for name in choices.names(group):
            if (value := settings(group, name).get(key)) is not None:
                yield f"{group}={name}", value


def meaning(key: str, meanings: dict[str, str]) -> str:
    """Fine-tuning's loop has the keys of pretraining's, which explains them. Of what only some kinds of data have, these."""
    text = meanings.get(key) or meanings.get(key.replace("finetune.", "pretrain."), "")
    section, _, name = key.partition(".")
    if not name or section not in schema.BASES or name in schema.BASES[section].model_fields:
        return text
    kinds = [kind for kind in schema.KINDS if name.split(".")[0] in schema.base(section, kind).model_fields]
    return f"{text} (of {' and '.join(kinds)})"


def comments(text: str) -> dict[str, str]:
    """{dotted key: its comment} of a YAML text; a comment may go on in lines of its own."""
    result: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        if match := LINE.fullmatch(line):
            path = [*path[: len(match[1]) // 2], match[2]]
            _, _, comment = match[3].partition(" # ")
            if comment:
                result[".".join(path)] = comment.strip()
        elif (more := line.strip()).startswith("# ") and line.startswith(" ") and ".".join(path) in result:
            result[".".join(path)] += f" {more[2:].strip()}"
    return result


def as_typed(value: Any) -> str:
    """A value as it stands in a command."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) else shown(value)


def type_of(key: str) -> str:
    """The type of a key of conf/config.yaml in words, of whatever kind of data has it."""
    section, _, rest = key.partition(".")
    if not rest:
        return in_section(schema.Config, f".{key}")
    if section == "sweep":
        return in_section(schema.Sweep, key)
    places = [schema.base(section, kind) for kind in ("", *schema.KINDS)]
    return next(text for place in places if (text := in_section(place, key)))


def in_section(section: Any, key: str) -> str:
    """The type of a dotted key in words; its first part is the section's name."""
    where, field = section, None
    for part in key.split(".")[1:]:
        field = where.model_fields.get(part) if isinstance(where, type) and issubclass(where, Strict) else None
        if field is None:
            return ""
        where = field.annotation
    return in_words(where, field.metadata if field else ())


def in_words(kind: Any, bounds: Any = ()) -> str:
    """`Literal["auto"] | Count` -> auto | whole number ≥ 1"""
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        return in_words(inner, [b for m in more for b in getattr(m, "metadata", ())])
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(in_words(part) for part in get_args(kind)))
    if get_origin(kind) is Literal:
        return " | ".join(map(shown, get_args(kind)))
    if get_origin(kind) is list:
        return f"list of {in_words(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    limits = [(SIGNS[name], value) for bound in bounds for name in SIGNS if (value := getattr(bound, name, None)) is not None]
    said = [f"{sign} {value:g}" for sign, value in limits if value < UNBOUNDED]
    return " ".join([PLAIN.get(kind, "text"), *([", ".join(said)] if said and kind in (int, float) else [])])
