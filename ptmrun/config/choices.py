"""The choices of each config group: the YAML files of conf/, and what their `spec` blocks say."""

import functools
import importlib.util
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import Field, create_model

from ptmrun.config.schema import SECTIONS, TYPES, Role, Strict, base, flat
from ptmrun.errors import UserError, nearest

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in a wheel, or in the source tree
GROUPS = ("model", "task", "dataset", "downstream", "finetune", "device", "logger", "experiment")
FOLDERS = {"model": "models", "task": "objectives", "downstream": "downstream", "dataset": "data/sources", "logger": "loggers"}
PLUGINS = "ptmrun.plugins"  # entry points: packages with the same folders as this one, and conf in them
CONFIG_DIR = "PTMRUN_CONFIG_DIR"  # environment variable: a folder with choices of the user's, as --config-dir gives it
HEADER = "# @package _global_"  # how Hydra knows that a file names whole keys


@functools.cache
def packages() -> dict[str, Path]:
    """This package and those of plug-ins by name, none of them imported. Raises UserError for one that is not there."""
    places = {"ptmrun": PACKAGE}
    for point in metadata.entry_points(group=PLUGINS):
        where = importlib.util.find_spec(point.value)
        if where is None or not where.submodule_search_locations:
            raise UserError(f"plug-in {point.name}: there is no package {point.value}; install it again, or remove it")
        places[point.value] = Path(where.submodule_search_locations[0])
    return places


def folders() -> dict[str, Path]:
    """The folder of YAML files of each package, and the user's own, which is called by its path."""
    own = os.environ.get(CONFIG_DIR)
    known = {name: CONF if name == "ptmrun" else place / "conf" for name, place in packages().items()}
    return known | ({own: Path(own)} if own else {})


def add_folder(folder: Path) -> None:
    """Choices of the user's, for this process and those that it starts: settings alone, each built on a choice that there is.

    So a run that is made with them has the name of that one and is read again without the folder. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder}: no such folder; expected one with experiment/NAME.yaml, dataset/NAME.yaml, ...")
    os.environ[CONFIG_DIR] = str(folder.resolve())
    files.cache_clear()
    there = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith((".", "_")))
    mistakes = [f"{folder / name}: no such group{nearest(name, GROUPS)}" for name in there if name not in GROUPS]
    own = [(group, file) for group in GROUPS for file in sorted((folder / group).glob("*.yaml"))]
    if not own and not mistakes:
        mistakes = [f"--config-dir {folder}: holds no choices; expected files such as {Path('experiment', 'NAME.yaml')} in it"]
    if mistakes := mistakes or [line for group, file in own for line in misuse(group, file)]:
        raise UserError(*mistakes)


def misuse(group: str, file: Path) -> list[str]:
    """What is wrong with a file of the user's own folder."""
    try:
        text = file.read_text(encoding="utf-8")
        block = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return [f"{file}: not a YAML file ({' '.join(str(error).split())})"]
    if not text.startswith(HEADER) or not isinstance(block, dict):
        return [f"{file}: expected {HEADER} as its first line, and keys below it; ptmrun new STUDY writes an example"]
    if group == "experiment":
        return []
    part = block.get(group)
    taken = [key for key in ("name", "spec") if isinstance(part, dict) and key in part]
    lines = [f"{file}: {group}.{key}: leave it out; it comes with the choice that this one is built on" for key in taken]
    if built_on(group, file.stem) not in names(group):
        lines.append(
            f"{file}: expected the choice that it is built on, as in defaults: [{names(group)[0]}, _self_]; "
            "new code comes as a package (docs/plugins.md)"
        )
    return lines


def built_on(group: str, name: str) -> str | None:
    """The choice of the same group that a choice begins with, by the `defaults` of its YAML."""
    lines = (yaml.safe_load(text(group, name)) or {}).get("defaults", [])
    return next((line for line in lines if isinstance(line, str) and line != "_self_"), None)


@functools.cache
def files(group: str) -> dict[str, tuple[str, Path]]:
    """The choices of a config group: {name: (package, file)}. Raises UserError where two packages have one of the same name."""
    places: dict[str, tuple[str, Path]] = {}
    for package, folder in folders().items():
        for file in sorted((folder / group).glob("*.yaml")):
            if file.stem in places:
                both = f"{places[file.stem][0]} and {package}"
                if package not in packages():
                    raise UserError(f"{group}={file.stem}: is in {both}; rename it")
                raise UserError(f"{group}={file.stem}: is in the packages {both}; rename it, or uninstall the plug-in")
            places[file.stem] = package, file
    return places


def names(group: str) -> list[str]:
    """The names of a config group."""
    return sorted(files(group))


def text(group: str, name: str) -> str:
    """The YAML of a choice."""
    return files(group)[name][1].read_text(encoding="utf-8")


def summary(group: str, name: str) -> str:
    """The one line that describes a choice: its first comment."""
    lines = text(group, name).splitlines()
    return next((x[2:].strip() for x in lines if x.startswith("# ") and "@package" not in x), "")


def settings_of_other_groups(group: str, name: str) -> dict[str, Any]:
    """What a choice sets outside of its own group, by dotted key."""
    block = yaml.safe_load(text(group, name))
    own = flat({k: v for k, v in block.items() if k not in (group, "defaults")})
    if group == "downstream":  # but not of pretraining, which a run that starts from another one has from that
        own |= {key: value for key, value in spec(group, name).prevails.items() if key.startswith("finetune.")}
    return own


def keys_of(group: str, name: str) -> set[str]:
    """All dotted keys that a choice sets."""
    return set(flat({k: v for k, v in yaml.safe_load(text(group, name)).items() if k != "defaults"}))


def keys_of_users(chosen: dict[str, str]) -> set[str]:
    """The same of the choices that are in the user's own folder."""
    own = [(group, name) for group, name in chosen.items() if files(group)[name][0] not in packages()]
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
    block = yaml.safe_load(text("experiment", experiment))
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
    if files(group)[name][0] not in packages() and (lower := built_on(group, name)):
        return spec(group, lower)  # of a choice in the user's own folder
    block = yaml.safe_load(text(group, name))[group].get("spec", {})
    roles = {key: Role[role.upper()] for key, role in block.get("roles", {}).items()}
    needs, provides, requires = (frozenset(block.get(k, ())) for k in ("needs", "provides", "requires"))
    module = block.get("module") and module_name(group, block["module"], files(group)[name][0])
    types, usual, prevails = (block.get(k, {}) for k in ("types", "usual", "prevails"))
    whole = block.get("whole_weights", False)
    return Spec(module, needs, provides, requires, types, roles, usual, prevails, whole)


def module_name(group: str, module: str, package: str) -> str:
    """Dotted: in the package that the YAML is from, else in this one."""
    folder = FOLDERS[group]
    place = packages()[package] / folder / module
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
    owners = [name for name, place in packages().items() if (place / "data" / kind / "__init__.py").is_file()]
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
            kind = Literal[tuple(m for m in names("model") if word.removeprefix("model:") in spec("model", m).provides)]
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
