"""The verbs: what can be done with run folders. One function a verb; the heavy imports are inside, so that help is instant."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from ptmrun.compose import compose
from ptmrun.config import schema as config
from ptmrun.errors import UserError, printable
from ptmrun.runs.folder import Run


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
    saved = config.load(run.path("config.yaml"))
    if "--fork" in flags:
        cfg = compose(settings, config.replace(saved, init=str(run.folder), outputs=str(run.folder.parent)))
        from ptmrun.stages import run as stages

        stages.run(cfg, settings, verb=f"resume {names[0]} --fork")
        return 0
    cfg = compose(settings, saved)
    from ptmrun.stages import run as stages

    stages.resume(run, cfg)
    return 0


def reproduce(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun.commands.reproduce import reproduce

    return 0 if reproduce(run, value(settings, "outputs", "outputs")) else 1


def replay(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun.commands.replay import replay

    return 0 if replay(run) else 1


def report(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun.reports import report

    print(printable(str(report.write(run))))
    return 0


def export(names: list[str], settings: list[str], flags: list[str]) -> int:
    run = Run.open(Path(names[0]))
    from ptmrun.commands.export import export

    merge = value(settings, "merge", "false")
    if merge not in ("true", "false"):
        raise UserError(f"merge={merge}: expected true or false")
    export(run, Path(names[1]), merge == "true")
    return 0


def generate(names: list[str], settings: list[str], flags: list[str]) -> int:
    words = dict(s.split("=", 1) for s in settings)
    try:
        sampling = config.Sampling.model_validate(words)
    except ValidationError as error:
        raise UserError(*config.explain(error, words, "", config.Sampling)) from None
    run = Run.open(Path(names[0]))
    from ptmrun.commands.generate import generate

    for number, text in enumerate(generate(run, sampling)):
        print(*(["---"] if number else []), *map(printable, text.split("\n")), sep="\n", flush=True)
    return 0


def compare(names: list[str], settings: list[str], flags: list[str]) -> int:
    runs = [Run.open(Path(name)) for name in names]
    from ptmrun.commands.compare import compare

    print(f"Written to {compare(runs, value(settings, 'outputs', 'outputs'))}")
    return 0


def list_runs(names: list[str], settings: list[str], flags: list[str]) -> int:
    from ptmrun.commands import listing

    filters = dict(s.split("=", 1) for s in settings if not s.startswith("sort="))
    listing.show(Path(names[0] if names else "outputs"), filters, value(settings, "sort", "name"), "--tree" in flags)
    return 0


def check(names: list[str], settings: list[str], flags: list[str]) -> int:
    cfg = compose(settings)
    from ptmrun.commands.check import check

    return 0 if check(cfg) else 1


def verify(names: list[str], settings: list[str], flags: list[str]) -> int:
    from ptmrun.commands import verify

    if not names:
        verify.listing()
        return 0
    return 0 if verify.verify(names, "--quick" in flags, value(settings, "outputs", "outputs")) else 1


VERBS = {
    "resume": Verb(
        resume,
        "RUN",
        "resume outputs/latest",
        "go on with an interrupted run from its last checkpoint; the result is bit-identical (--fork KEY=VALUE...: a new run)",
        settings=None,
        flags=("--fork",),
    ),
    "reproduce": Verb(
        reproduce,
        "RUN",
        "reproduce outputs/latest",
        "run a saved config again in a new folder and say whether the result is the same (exit code 0 or 1)",
        settings=("outputs",),
    ),
    "compare": Verb(
        compare,
        "RUN RUN...",
        "compare outputs/a outputs/b",
        "what differs in their configs, their scores with the noise, and their curves",
        least=2,
        most=float("inf"),
        settings=("outputs",),
    ),
    "list": Verb(
        list_runs,
        "[FOLDER]",
        "list outputs status=done sort=score",
        "the runs with status, score, age and size; KEY=VALUE filters, sort=KEY, --tree shows what came from what",
        least=0,
        settings=None,
        flags=("--tree",),
    ),
    "replay": Verb(
        replay,
        "RUN",
        "replay outputs/latest",
        "run the step at which training diverged again and say where it begins (exit code 0, or 1 if it does not here)",
    ),
    "report": Verb(report, "RUN", "report outputs/latest", "write report.html of a run again"),
    "export": Verb(
        export,
        "RUN FOLDER",
        "export outputs/latest my_model",
        "write the fine-tuned model as transformers' or torchvision's own classifier, load it there and compare the logits "
        "(merge=true: with what LoRA and its like trained in the weights)",
        least=2,
        most=2,
        settings=("merge",),
    ),
    "generate": Verb(
        generate,
        "RUN",
        'generate outputs/latest prompt="Once upon" samples=3',
        "go on with a text by a pretrained language model (gpt, lstm); "
        "tokens=100 temperature=0.8 (0: the likeliest) top_k= top_p=0.95 samples=1 seed=0",
        settings=tuple(config.Sampling.model_fields),
    ),
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
