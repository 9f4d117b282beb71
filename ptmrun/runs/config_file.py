"""The saved config of a run folder, read as data."""

import functools
import re
import sys
from pathlib import Path
from typing import Any

from ptmrun.config.parsing import MISSING, leave_out_foreign, parse, shown
from ptmrun.config.schema import Config
from ptmrun.errors import UserError, printable
from ptmrun.storage.safe_read import plain_yaml

TOLD: set[str] = set()  # what has been said of configs of older versions


def load(path: Path) -> Config:
    """The saved config of a run folder, read as data: no tags, no interpolations, the same strict parse.

    Keys that have been added since it was saved take their defaults, and stderr says so, once for runs that lack the same.
    """
    raw = load_plain(path)
    if isinstance(raw, dict):
        leave_out_foreign(raw)  # which older versions wrote
        leave_out_retired(raw)
    try:
        return parse(raw)
    except UserError as error:
        if not all(line.endswith(MISSING) for line in error.args):
            raise
        lacking = [line.removesuffix(MISSING) for line in error.args]
    from ptmrun.config.derived import defaults

    added = defaults(raw, lacking)
    for key, value in added.items():
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, raw)[last] = value
    config = parse(raw)
    tell_defaults(path, ", ".join(f"{key}={shown(value)}" for key, value in added.items()))
    return config


def leave_out_retired(raw: dict[str, Any]) -> None:
    """Takes out what only older versions know."""
    evaluate = raw.get("evaluate")
    if isinstance(evaluate, dict):
        evaluate.pop("longer", None)
        if isinstance(baselines := evaluate.get("baselines"), list):
            evaluate["baselines"] = [name for name in baselines if name != "scratch_long"]


def tell_defaults(path: Path, added: str) -> None:
    """Says once what configs like this one lacked."""
    if added not in TOLD:
        TOLD.add(added)
        what = "of an older version; taken by default, as in others that lack the same"
        print(f"ptmrun: {printable(str(path))}: {what}: {added}", file=sys.stderr)


def load_plain(path: Path) -> Any:
    """A YAML file as plain data. Raises UserError on tags, aliases, interpolations and what is no YAML."""
    raw = plain_yaml(path)
    if match := re.search(r"\$\{.*?(\}|$)", str(raw)):
        raise UserError(f"{path}: holds the interpolation {shown(match[0])}; a saved config has plain values only")
    return raw
