"""What may change when a run is resumed: nothing that alters what it computes, unless it is asked to go on for longer."""

from typing import Any

from ptmrun.config import parsing, schema
from ptmrun.config.schema import Config, Role, role_of
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ -> (old, new)."""
    a, b = schema.flat(parsing.plain(old)), schema.flat(parsing.plain(new))
    return {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}


def allowed(run: Run, old: Config, new: Config) -> list[str]:
    """One line for each change, for the log. Raises UserError that names those which cannot be."""
    lines, refused = [], []
    for key, (before, after) in differences(old, new).items():
        role = role_of(old, key) | role_of(new, key)
        line = f"{key}: {parsing.shown(before)} -> {parsing.shown(after)}"
        if Role.HARMLESS in role:
            lines.append(line)
        elif Role.LONGER in role and all(isinstance(x, int | float) for x in (before, after)) and after > before:
            if begun_after(run, key.split(".")[0]):
                refused.append(f"{line}: that stage is complete; --fork starts a new run from its weights")
            else:
                lines.append(f"{line} (the schedule is stretched; not the result of a run that began so)")
        elif Role.PLACE in role:
            lines.append(f"{line} (where the same data must lie)")
        else:
            refused.append(f"{line}: changes what is computed; --fork starts a new run with it from the weights so far")
    if refused:
        raise UserError(*refused)
    return lines


def begun_after(run: Run, loop: str) -> bool:
    """Whether a stage has ended, or has results already that a longer one would not agree with."""
    return run.path(ENCODER if loop == "pretrain" else "checkpoints/finetuned").exists()
