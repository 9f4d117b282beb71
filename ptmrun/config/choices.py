"""The choices of each config group: the YAML files of conf/, of plug-ins and of the user. Quick to import, for the help."""

import functools
import importlib.util
import os
import re
from importlib import metadata
from pathlib import Path

import yaml

from ptmrun.errors import UserError, nearest

PACKAGE = Path(__file__).parents[1]
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in a wheel, or in the source tree
GROUPS = ("model", "task", "dataset", "downstream", "finetune", "device", "logger", "experiment")
PLUGINS = "ptmrun.plugins"  # entry points: packages with the same folders as this one, and conf in them
CONFIG_DIR = "PTMRUN_CONFIG_DIR"  # environment variable: a folder with choices of the user's, as --config-dir gives it
CHOICE = re.compile(rf"({'|'.join(GROUPS)})=[A-Za-z]\w*")
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


def no_such(group: str, name: str) -> str:
    """That a group has no such choice, in a line."""
    return f"{group}={name}: no such {group}{nearest(name, names(group))}"


def unknown(words: list[str]) -> list[str]:
    """What is wrong with words that all choose something by a plain name; where one of them is another word, that is seen later,
    when all mistakes are."""
    pairs = [word.split("=") for word in words if CHOICE.fullmatch(word)]
    if len(pairs) < len(words):
        return []
    return [no_such(group, name) for group, name in pairs if name not in [*names(group), "null"]]


def text(group: str, name: str) -> str:
    """The YAML of a choice."""
    return files(group)[name][1].read_text(encoding="utf-8")


def summary(group: str, name: str) -> str:
    """The one line that describes a choice: its first comment."""
    lines = text(group, name).splitlines()
    return next((x[2:].strip() for x in lines if x.startswith("# ") and "@package" not in x), "")
