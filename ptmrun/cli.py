"""argv -> a run, a sweep or a verb. It imports what these need when it is known which: the help and a mistake are quick."""

import importlib
import os
import re
import signal
import sys
import traceback
from pathlib import Path
from types import TracebackType

import ptmrun
from ptmrun.commands import screens, table
from ptmrun.config import choices, secrets
from ptmrun.config.launch import MEETING, follows, launched
from ptmrun.errors import LESS_MEMORY, Interrupted, UserError, first_line, nearest, out_of_memory, printable

KEY = re.compile(r"\+*[A-Za-z_][\w.]*")  # of a setting
SPINS = "1000"  # turns of a waiting thread of PyTorch's (libgomp) before it sleeps: what libgomp takes when it has too few cores


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `ptmrun` command. Exit codes: 0 done, 1 not reproduced, 2 the user's to mend, 128 + signal."""
    if "OMP_WAIT_POLICY" not in os.environ:  # on a busy machine, threads that spin on take the cores from the others
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is imported
    sys.excepthook = print_masked
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def print_masked(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, which is for bugs, without secrets and escapes too: a sweep keeps what its jobs print."""
    from ptmrun.runs.console import shown

    print(shown("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def run(argv: list[str]) -> int:
    try:
        code = dispatch(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        said = follows() and MEETING not in os.environ and os.environ.get("LOCAL_RANK") != "0"  # by another process here
        for line in () if said else error.args:
            print(f"ptmrun: {printable(secrets.masked(str(line)))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python writes the rest at its end
        return 128 + signal.SIGPIPE
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        if out_of_memory(error):
            print(f"ptmrun: out of memory ({printable(secrets.masked(first_line(error)))}): {LESS_MEMORY}", file=sys.stderr)
            return 2
        if not isinstance(error, OSError) or error.filename is None:
            raise
        print(f"ptmrun: {printable(secrets.masked(str(error.filename)))}: {error.strerror}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str]) -> int:
    argv = with_own_choices(argv)
    if not argv:
        print(screens.screen())
        return 0
    if (launched() or 1) > 1 and (argv[0] in {*table.VERBS} - {"resume"} or {"-m", "--multirun"} & {*argv}):
        raise UserError(f"torchrun -m ptmrun {argv[0]}: torchrun starts a run, or ptmrun resume; start this without it")
    if argv[0] in table.VERBS and {"-h", "--help"} & set(argv):
        from ptmrun.commands import help

        print(help.verb(argv[0]))
        return 0
    if argv[0] in ("-h", "--help") or "--help" in argv or "-h" in argv:
        print(screens.page())
        return 0
    if argv[0] == "--version":
        print(f"ptmrun {ptmrun.__version__}")
        return 0
    if argv[0] in ("-sc", "--shell-completion"):
        if len(argv) != 2 or argv[1].split("=")[0] not in ("install", "uninstall", "query"):
            raise UserError('-sc: expected install=SHELL, as in: eval "$(ptmrun -sc install=bash)" (bash, fish or zsh)')
        from ptmrun.config.grammar import hydra_main

        hydra_main(lambda _: None, argv)
        return 0
    if argv[0] in table.VERBS:
        return verb(argv[0], argv[1:])
    flags = [a for a in argv if a.startswith("-") and not a.startswith("--on-nan=")]
    overrides = [a.replace("--on-nan=", "on_nan=", 1) for a in argv if a not in flags]
    if flags in (["-m"], ["--multirun"]):
        from ptmrun.sweeps import sweep

        return sweep.run(overrides)
    if flags in (["-c"], ["--cfg"]) and "job" in overrides:
        from ptmrun.compose import compose
        from ptmrun.config import parsing

        overrides.remove("job")
        print(parsing.dump(compose(overrides)), end="")
        return 0
    if flags:
        raise UserError(
            f"{flags[0]}: no such option; there is: --help, --version, -m (sweep), --cfg job, --config-dir, -sc (completion)"
        )
    if "=" not in overrides[0]:
        raise UserError(f"{overrides[0]}: no such verb{nearest(overrides[0], table.VERBS)}; settings have the form key=value")
    if mistakes := choices.unknown(overrides):
        raise UserError(*mistakes)
    from ptmrun.compose import compose

    cfg = compose(overrides)
    from ptmrun.stages import run as stages

    stages.run(cfg, overrides)
    return 0


def with_own_choices(argv: list[str]) -> list[str]:
    """The words without `--config-dir FOLDER`, whose choices are there from now on."""
    rest, words = [], iter(argv)
    for word in words:
        option, equals, folder = word.partition("=")
        if option != "--config-dir":
            rest.append(word)
        elif folder := folder if equals else next(words, ""):
            choices.add_folder(Path(folder))
        else:
            raise UserError("--config-dir: expected a folder with choices of your own, as in: --config-dir my_study/conf")
    return rest


def verb(name: str, argv: list[str]) -> int:
    """Sorts the words after a verb into folders or names, settings and flags, and runs it."""
    from ptmrun.config import parsing
    from ptmrun.runs.folder import Run

    known = table.VERBS[name]
    flags = [a for a in argv if a.startswith("-") and a != "-"]
    settings, names = sorted_words(known, [a for a in argv if a not in flags])
    if wrong := [f for f in flags if f not in known.flags]:
        raise UserError(f"{name} {wrong[0]}: no such option{nearest(wrong[0], known.flags)}")
    kind = known.own()
    own = kind.model_fields if kind else None
    if own is not None and (bad := [s for s in settings if s.split("=")[0] not in own]):
        raise UserError(f"{name} {bad[0]}: no such setting of this verb{nearest(bad[0].split('=')[0], own)}")
    if not known.least <= len(names) <= known.most:
        raise UserError(f"{name}: expected {known.usage}, as in: ptmrun {known.example}")
    options = parsing.parse_words(kind, settings) if kind else None
    runs = [Run.open(Path(folder)) for place, folder in enumerate(names) if place < known.runs]
    module = importlib.import_module(f"ptmrun.commands.{known.module}")
    return module.command(table.Call(names, runs, settings, options, flags))


def sorted_words(known: table.Verb, argv: list[str]) -> tuple[list[str], list[str]]:
    """(settings, folders or names). What looks like a setting is a folder where one of that name is there, and the verb lacks a
    folder or has no such setting."""
    alike = [a for a in argv if "=" in a and KEY.fullmatch(a.partition("=")[0])]
    count, settings, kind = len(argv) - len(alike), [], known.own()
    for word in alike:
        foreign = kind is not None and word.partition("=")[0] not in kind.model_fields
        lacking = count < (known.least or known.most)
        if (foreign or lacking) and count < known.most and Path(word).exists():
            count += 1
        else:
            settings.append(word)
    return settings, [a for a in argv if a not in settings]
