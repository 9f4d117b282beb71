"""The stages of a run: pretrain, finetune, evaluate, and what happens around them."""

import contextlib
import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptmrun.config import parsing, schema
from ptmrun.config.init_source import origin
from ptmrun.config.launch import follows
from ptmrun.config.schema import Config
from ptmrun.config.watched import watch
from ptmrun.errors import LESS_MEMORY, Interrupted, UserError, first_line, out_of_memory
from ptmrun.loggers import tracker
from ptmrun.reports import projection, report
from ptmrun.runs import changes, config_file, provenance
from ptmrun.runs.console import console
from ptmrun.runs.folder import Run, now
from ptmrun.stages import part_weights, reuse
from ptmrun.stages.company import company, follow, launch, run_before
from ptmrun.stages.context import chosen_stages, labelled
from ptmrun.stages.evaluate import evaluate
from ptmrun.stages.finetune import finetune
from ptmrun.stages.prepare import prepare
from ptmrun.stages.pretrain import pretrain
from ptmrun.training import device
from ptmrun.training.signals import Stop


def run(cfg: Config, overrides: list[str], verb: str = "", known: dict[str, Any] | None = None) -> Run:
    """A new run from the beginning; `verb` is what was typed before the overrides, `known` what its manifest must come to hold:
    the data, the weights that it starts from. Where torchrun has started several processes, this is the main one's; the others
    follow it."""
    if follows():
        follow()
    if before := run_before(Path(cfg.outputs)):
        saved = config_file.load(before.sound("config.yaml"))
        resume(before, parsing.replace(saved, device__processes=cfg.device.processes))
        return before
    if origin(cfg.init) == "run":
        Run.open(Path(cfg.init))
    cfg = part_weights.by_folder(cfg)
    tracker.library(cfg.logger.name)  # what is not installed is said before there is a folder
    projection.library(cfg.evaluate.map)
    more = {k: v for k, v in {"launch": launch(), **(known or {})}.items() if v}
    run = Run.create(cfg, overrides, provenance.manifest([*verb.split(), *overrides]) | more)
    with run.lock():
        execute(run, cfg)
    return run


def resume(run: Run, cfg: Config) -> None:
    """Goes on with a run, with what may change of its config. Raises UserError when it is done or a process works on it.
    Processes that are not the main one follow it."""
    if follows():
        follow()
    with run.lock():
        run.manifest = Run.open(run.folder).manifest
        if run.manifest["status"] == "done":
            raise UserError(f"{run.folder}: done already; nothing to resume (--fork starts a new run from its weights)")
        changed = changes.allowed(run, config_file.load(run.sound("config.yaml")), cfg)
        run.say(f"Resuming {run.folder} ({run.manifest['status']})")
        for line in changed:
            run.say(f"  changed: {line}")
        run.update(status="running", resumed=[*run.manifest.get("resumed", []), now()])
        if changed:
            run.update(changed=[*run.manifest.get("changed", []), *changed])
            run.write("config.yaml", parsing.dump(cfg))
        try:
            execute(run, cfg)
        except UserError as error:
            lost = [key for key in ("dataset.root", "downstream.root") if error.args[0].startswith(f"{key}=")]
            hints = [f"if that has moved: ptmrun resume {run.typed} {key}=PLACE" for key in lost if ": no such " in error.args[0]]
            raise UserError(*error.args, *hints) from None


@contextlib.contextmanager
def watched(run: Run) -> Iterator[None]:
    """Marks the run failed or interrupted when it ends early; of one that could not begin nothing is left."""

    def end(status: str, why: str) -> None:
        with contextlib.suppress(
            OSError, MemoryError, UserError
        ):  # a full disk, or a folder that is gone, must not hide the error
            run.update(status=status, error=why, ended=now())
            run.note(f"{status}: {why}")

    try:
        yield
    except Interrupted as stop:
        end("interrupted", str(stop))
        console.print(f"\nInterrupted; the state is saved. Go on with: ptmrun resume {run.typed}", markup=False)
        raise
    except UserError as error:
        end("failed", str(error))
        if "compute" in run.manifest or "resumed" in run.manifest:
            raise UserError(*error.args, f"the run so far is in {run.folder}") from None
        run.discard()  # with such data or weights it cannot begin
        raise
    except (MemoryError, OSError, RuntimeError, ImportError) as error:
        lacking = f"out of memory ({first_line(error)})"
        why = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        end("failed", lacking if out_of_memory(error) else why)
        if out_of_memory(error):
            hint = f"what was written before is intact; with more memory go on with: ptmrun resume {run.typed}"
            raise UserError(f"{lacking}: {LESS_MEMORY}; {hint}") from None
        if not isinstance(error, OSError):
            raise
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        hint = f"what was written before is intact; afterwards go on with: ptmrun resume {run.typed}"
        raise UserError(f"{error.filename or run.folder}: {error.strerror}; {hint}") from None
    except BaseException as error:
        end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", f"{type(error).__name__}: {error}")
        raise
    finally:
        if run.tracker:
            run.tracker.close()


def execute(run: Run, cfg: Config) -> None:
    """Runs the stages that the config asks for; each skips what it finds done."""
    stop = Stop()
    with watched(run), stop.handled(), company(run, cfg.device.processes, stop) as others:
        console.print(f"Run folder: {run.folder}", markup=False)
        read = set(run.manifest.get("read", []))
        settings = watch(cfg, read)
        device.check_processes(settings.device.name, settings.device.processes)
        context = prepare(run, settings, stop)
        cfg = context.cfg
        context.processes = others.join()
        tracker.start(run, cfg)
        wall: dict[str, float] = dict(run.manifest.get("wall_s", {}))
        stages = {"pretrain": pretrain, "finetune": finetune, "evaluate": evaluate}
        chosen = chosen_stages(context)
        if not labelled(context) and cfg.stage == "all":
            run.say("The data has no classes to tell apart: only the pretraining stage runs.")
        if not context.problem.trains and cfg.stage != "pretrain":
            run.say(f"downstream={cfg.downstream.name} trains nothing: the pretrained model is evaluated as it is")
        for name in chosen:
            start = time.perf_counter()
            inputs = reuse.inputs_hash(context, name)
            if cfg.skip_done:
                reuse.take(context, name, inputs)
            try:
                stages[name](context)
            finally:  # the time of an attempt that was interrupted counts; `watched` writes it
                wall[name] = round(wall.get(name, 0.0) + time.perf_counter() - start, 1)
                run.manifest = {**run.manifest, "wall_s": wall}
            run.update(inputs={**run.manifest.get("inputs", {}), name: inputs}, read=sorted(read))
        others.dismiss()
        report_dead_keys(run, cfg, read)
        shutil.rmtree(run.path("checkpoints", "state"), ignore_errors=True)  # what only resuming needs
        run.manifest = {k: v for k, v in run.manifest.items() if k != "error"} | {"status": "done", "ended": now()}
        run.close_metrics()
        path = report.write(run)  # before the manifest says done: a run that is done is whole
        run.update()
        run.say(f"Report: {path}")


def report_dead_keys(run: Run, cfg: Config, read: set[str]) -> None:
    """Names the keys that were given and that nothing read: a warning, or with strict=true a UserError."""
    overrides = config_file.load_plain(run.sound("overrides.yaml"))
    given = [o.lstrip("+").split("=", 1)[0] for o in overrides]
    known = schema.flat(parsing.plain(cfg))
    dead = [key for key in dict.fromkeys(given) if "." in key and key in known and key not in read]
    lines = [f"{key}: given, but nothing in this run reads it" for key in dead]
    for line in lines:
        run.say(f"Warning: {line}")
    if lines and cfg.strict:
        raise UserError(*lines)
