"""The verbs: what can be done with run folders. One function a verb; the heavy imports are inside, so that help is instant."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ptmrun.compose import compose
from ptmrun.run import Run


class Verb(NamedTuple):
    """How a verb is typed, and the function that gets (folders or names, settings, flags) and returns the exit code."""

    run: Callable[[list[str], list[str], list[str]], int]
    usage: str
    example: str
    what: str
    least: int = 1  # folders or names
    most: float = 1
    settings: tuple[str, ...] | None = ()  # keys that it takes; None: any
    flags: tuple[str, ...] = ()


def value(settings: list[str], key: str, default: str) -> str:
    """Of `key=value` words, the last with this key."""
    return next((s.split("=", 1)[1] for s in reversed(settings) if s.startswith(f"{key}=")), default)


def resume(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun import stages

    stages.resume(run)
    return 0


def reproduce(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun.reproduce import reproduce

    return 0 if reproduce(run, value(settings, "outputs", "outputs")) else 1


def report(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun import report

    print(report.write(run))
    return 0


def check(names: list[str], settings: list[str], flags: list[str]) -> int:
    cfg = compose(settings)
    from ptmrun.check import check

    return 0 if check(cfg) else 1


def verify(names: list[str], settings: list[str], flags: list[str]) -> int:
    from ptmrun import verify

    if not names:
        verify.listing()
        return 0
    return 0 if verify.verify(names, "--quick" in flags, value(settings, "outputs", "outputs")) else 1


VERBS = {
    "resume": Verb(
        resume,
        "RUN",
        "resume outputs/latest",
        "go on with an interrupted run from its last checkpoint; the result is bit-identical",
    ),
    "reproduce": Verb(
        reproduce,
        "RUN",
        "reproduce outputs/latest",
        "run a saved config again in a new folder and say whether the result is the same (exit code 0 or 1)",
        settings=("outputs",),
    ),
    "report": Verb(report, "RUN", "report outputs/latest", "write report.html of a run again"),
    "check": Verb(
        check,
        "KEY=VALUE...",
        "check task=mae",
        "try out what a run would do: data, losses, gradients, checkpoints, memory, disk and time (exit code 0 or 1)",
        least=0,
        most=0,
        settings=None,
    ),
    "verify": Verb(
        verify,
        "EXPERIMENT...",
        "verify mnist5k_mim --quick",
        "run experiments again and compare with their certificates (exit code 0 or 1); without a name: list them",
        least=0,
        most=math.inf,
        settings=("outputs",),
        flags=("--quick",),
    ),
}
