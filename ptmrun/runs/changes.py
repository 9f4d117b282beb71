"""What may change when a run is resumed: nothing that alters what it computes, unless it is asked to go on for longer."""

from typing import Any

from ptmrun.config import schema as config
from ptmrun.config.schema import Config
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages.context import ENCODER

LOOPS = ("pretrain", "finetune")


HARMLESS = {  # keys that do not change the weights
    "device.workers",
    "dataset.cache_gb",
    "strict",
    "skip_done",
    "pretrain.probes",
    "pretrain.sentences",
    *(f"{loop}.{key}" for loop in LOOPS for key in ("log_every", "checkpoint_every")),
}


LONGER = {f"{loop}.{key}" for loop in LOOPS for key in ("steps", "epochs")}


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ -> (old, new)."""
    a, b = config.flat(config.plain(old)), config.flat(config.plain(new))
    return {k: (a.get(k), b.get(k)) for k in {**a, **b} if a.get(k) != b.get(k)}


def allowed(run: Run, old: Config, new: Config) -> list[str]:
    """One line for each change, for the log. Raises UserError that names those which cannot be."""
    lines, refused = [], []
    for key, (before, after) in differences(old, new).items():
        line = f"{key}: {config.shown(before)} -> {config.shown(after)}"
        if key in HARMLESS or key.startswith("logger."):
            lines.append(line)
        elif key in LONGER and all(isinstance(x, int | float) for x in (before, after)) and after > before:
            if begun_after(run, key.split(".")[0]):
                refused.append(f"{line}: that stage is complete; --fork starts a new run from its weights")
            else:
                lines.append(f"{line} (the schedule is stretched; not the result of a run that began so)")
        else:
            refused.append(f"{line}: changes what is computed; --fork starts a new run with it from the weights so far")
    if refused:
        raise UserError(*refused)
    return lines


def begun_after(run: Run, loop: str) -> bool:
    """Whether a stage has ended, or has results already that a longer one would not agree with."""
    return run.path(ENCODER if loop == "pretrain" else "checkpoints/finetuned").exists()
