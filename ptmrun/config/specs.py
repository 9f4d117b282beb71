"""What the YAML of a choice says: its `spec` block, the types of its keys, and what it sets."""

import functools
import re
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, create_model

from ptmrun.config import choices
from ptmrun.config.schema import SECTIONS, TYPES, Role, Strict, base, flat
from ptmrun.errors import UserError

FOLDERS = {"model": "models", "task": "objectives", "downstream": "downstream", "dataset": "data/sources", "logger": "loggers"}


def settings_of_other_groups(group: str, name: str) -> dict[str, Any]:
    """What a choice sets outside of its own group, by dotted key."""
    block = yaml.safe_load(choices.text(group, name))
    own = flat({k: v for k, v in block.items() if k not in (group, "defaults")})
    if group == "downstream":  # but not of pretraining, which a run that starts from another one has from that
        own |= {key: value for key, value in spec(group, name).prevails.items() if key.startswith("finetune.")}
    return own


def keys_of(group: str, name: str) -> set[str]:
    """All dotted keys that a choice sets."""
    return set(flat({k: v for k, v in yaml.safe_load(choices.text(group, name)).items() if k != "defaults"}))


def keys_of_users(chosen: dict[str, str]) -> set[str]:
    """The same of the choices that are in the user's own folder."""
    own = [(group, name) for group, name in chosen.items() if choices.files(group)[name][0] not in choices.packages()]
    return {key for group, name in own for key in keys_of(group, name)}


def prevailing(downstream: str, model: str) -> dict[str, Any]:
    """What a problem sets instead of a model, by dotted key."""
    every = {
        key: value.get(model) if isinstance(value, dict) else value
        for key, value in spec("downstream", downstream).prevails.items()
    }
    return {key: value for key, value in every.items() if value is not None}


def choices_of_experiment(experiment: str) -> dict[str, str]:
    """The choices that an experiment makes in its defaults: `override /dataset: digits` -> {dataset: digits}."""
    block = yaml.safe_load(choices.text("experiment", experiment))
    lines = [(k.removeprefix("override /"), v) for line in block.get("defaults", []) if line != "_self_" for k, v in line.items()]
    return {group: choice for group, choice in lines if group in SECTIONS}


class Spec(NamedTuple):
    module: str | None  # dotted
    needs: frozenset[str]
    provides: frozenset[str]
    requires: frozenset[str]
    types: dict[str, str]
    roles: dict[str, Role]  # of keys in `types`
    usual: dict[str, str]  # the dataset of a problem, the downstream of a data set, where none is chosen
    prevails: dict[str, Any]  # what a problem sets instead of the model, by dotted key; a mapping: by the model's name
    whole_weights: bool = False  # it computes with weights outside of `forward`, so that each process must have them whole


@functools.cache
def spec(group: str, name: str) -> Spec:
    """The `spec` block of a choice, always from the installed YAML, never from a saved config."""
    if choices.files(group)[name][0] not in choices.packages() and (lower := choices.built_on(group, name)):
        return spec(group, lower)  # of a choice in the user's own folder
    block = yaml.safe_load(choices.text(group, name))[group].get("spec", {})
    roles = {key: Role[role.upper()] for key, role in block.get("roles", {}).items()}
    needs, provides, requires = (frozenset(block.get(k, ())) for k in ("needs", "provides", "requires"))
    module = block.get("module") and module_name(group, block["module"], choices.files(group)[name][0])
    types, usual, prevails = (block.get(k, {}) for k in ("types", "usual", "prevails"))
    whole = block.get("whole_weights", False)
    return Spec(module, needs, provides, requires, types, roles, usual, prevails, whole)


def module_name(group: str, module: str, package: str) -> str:
    """Dotted: in the package that the YAML is from, else in this one."""
    folder = FOLDERS[group]
    place = choices.packages()[package] / folder / module
    home = package if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() else "ptmrun"
    return f"{home}.{folder.replace('/', '.')}.{module}"


def kind(dataset: str) -> str:
    """The kind of data that a data set is of: among what it provides, that which is a folder of data/."""
    provided = sorted(spec("dataset", dataset).provides)
    kinds = [name for name in provided if package_of(name)]
    if len(kinds) != 1:
        raise UserError(f"dataset={dataset}: provides {', '.join(provided)}; expected one kind of data among it")
    return kinds[0]


def package_of(kind: str) -> str | None:
    """The package that a kind of data is in. Raises UserError where two have it."""
    owners = [name for name, place in choices.packages().items() if (place / "data" / kind / "__init__.py").is_file()]
    if len(owners) > 1:
        raise UserError(
            f"data of the kind {kind}: is in the packages {' and '.join(owners)}; rename it, or uninstall the plug-in"
        )
    return f"{owners[0]}.data.{kind}" if owners else None


def parse_type(text: str) -> Any:
    """`auto|count` -> Literal["auto"] | Count"""
    union: Any = None
    for word in re.split(r"\|(?![^\[]*\])", text):  # not at the bars within a list
        if word == "null":
            kind: Any = type(None)
        elif word.startswith("model:"):
            kind = Literal[tuple(m for m in choices.names("model") if word.removeprefix("model:") in spec("model", m).provides)]
        elif word.startswith("["):
            kind = Annotated[list[parse_type(word[1:-1])], Field(min_length=1)]  # type: ignore[misc]
        else:
            kind = TYPES.get(word, Literal[int(word) if word.isdigit() else word])
        union = kind if union is None else union | kind
    return union


@functools.cache
def section(group: str, name: str, kind: str) -> type[Strict]:
    """The type of a group's section for one choice and kind of data: its base class and the keys of the choice's `spec.types`."""
    own = spec(group, name)
    fields: dict[str, Any] = {
        key: (Annotated[parse_type(text), own.roles.get(key, Role(0))], ...) for key, text in own.types.items()
    }
    return create_model(f"{group}_{name}", __base__=base(group, kind), **fields)
