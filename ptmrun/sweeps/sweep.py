"""Sweeps: Hydra's multirun grammar and launchers. Every job is a `ptmrun` in a process of its own, kept in a ledger.

The launcher (Hydra's own, joblib, submitit, Ray) calls `job` somewhere with a number; what is to be done stands in the ledger.
So a job that has been done is skipped wherever it runs, and a crash, a leak or an empty memory stays in one process.
"""

import contextlib
import itertools
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.markup import escape

from ptmrun.compose import compose
from ptmrun.config import choices, parsing, schema, secrets
from ptmrun.config.grammar import assigned, compose_raw, parsed, quoted, sort_overrides, unknown
from ptmrun.errors import Misfit, UserError
from ptmrun.runs.console import console
from ptmrun.runs.folder import locked, stamp
from ptmrun.storage.files import lock, new_folder, remove, write_atomic
from ptmrun.sweeps import processes
from ptmrun.sweeps.ledger import ENDED, Job, Ledger, this_process, title, varying
from ptmrun.training.signals import Stop

EXTRAS = ("joblib", "submitit", "ray")
Launch = Callable[[list[Job]], None]


def run(overrides: list[str]) -> int:
    """A sweep from its command to its table. Returns 0 when every job is done, 1 when one is not."""
    secrets.refuse(dict(o.partition("=")[::2] for o in overrides))  # before the ledger holds them
    *_, mistakes = sort_overrides(overrides, sweep=True)
    if mistakes:
        raise UserError(*mistakes)
    hydra = [o for o in overrides if o.lstrip("+").startswith("hydra")]  # where a `+` means something
    others = [o.lstrip("+") for o in overrides if o not in hydra]
    settings = parse_settings([o for o in others if o.startswith(("sweep.", "experiment="))])
    mine = [o for o in others if not o.startswith("sweep.")]
    if settings.search == "optuna" and (ungiven := left_open(settings, mine)):
        keys = ", ".join(o.split("=", 1)[0] for o in ungiven)
        raise UserError(f"sweep.search=optuna: takes no values from sweep.grid; give {keys} in the command")
    if settings.search == "grid":
        wanted, problems = combinations(settings, mine)
        if len(problems) == len(wanted):
            raise UserError(*dict.fromkeys(line for lines in problems.values() for line in lines))
    ledger = Ledger(sweep_folder(settings, mine))
    console.print(f"Sweep folder: {ledger.folder}", markup=False)
    stopped = None
    alone = lock(ledger.inside(".lock"), f"{ledger.folder}: another process is running this sweep")
    with alone, launcher(ledger, settings.prune, hydra) as launch, shown(ledger), Stop(then=ledger.stop).handled():
        remove(ledger.inside(".stop"))  # of an earlier attempt
        try:
            if settings.search == "optuna":
                from ptmrun.sweeps import search

                search.run(ledger, settings, mine, launch)
            else:
                launch(queue(ledger, wanted, problems))
        except KeyboardInterrupt:
            stopped = 130
    finish(ledger)
    left = [j for j in ledger.jobs() if j.status not in ("done", "pruned")]
    if left:
        words = [o for o in overrides if not o.lstrip("+").startswith("sweep.resume=")] + [
            assigned("sweep.resume", ledger.folder)
        ]
        how = f"Go on with what is missing: {shlex.join(['ptmrun', '-m', *words])}"
        console.print(f"{len(left)} of {len(ledger.jobs())} jobs are not done. {how}", markup=False)
    return stopped or (1 if left else 0)


def parse_settings(overrides: list[str]) -> schema.Sweep:
    """The `sweep.` keys, with those that an experiment brings. Raises UserError, also where several would bring some."""
    known = compose_raw([], keep="sweep")
    typed = [o for o in overrides if o.startswith("sweep.")]
    if wrong := [line for o in typed if (line := unknown(o.split("=", 1)[0], known))]:
        raise UserError(*wrong)
    experiments = [e for job in grid([o for o in overrides if o not in typed]) for e in job]
    if len(experiments) > 1:
        if brings := [e for e in experiments if compose_raw([e], keep="sweep")["sweep"] != known["sweep"]]:
            raise UserError(f"{brings[0]}: brings settings of a sweep of its own; it cannot be one of several experiments")
        experiments = []
    raw = compose_raw([*experiments, *typed], keep="sweep")["sweep"]
    try:
        return schema.Sweep.model_validate(raw)
    except ValidationError as error:
        raise UserError(*parsing.explain(error, raw, "sweep.", schema.Sweep)) from None


def grid(overrides: list[str]) -> list[list[str]]:
    """Every combination of the values, in the order of the command: the overrides of each job."""
    lists = []
    for text, override in zip(overrides, parsed(overrides), strict=True):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{text}: an interval is searched, not enumerated; add sweep.search=optuna")
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        lists.append([text] if values is None else [f"{override.get_key_element()}={v}" for v in values])
    return [list(job) for job in dict.fromkeys(itertools.product(*lists))]


def combinations(settings: schema.Sweep, overrides: list[str]) -> tuple[list[list[str]], dict[tuple[str, ...], tuple[str, ...]]]:
    """The jobs of a grid, and what is wrong with those that cannot be composed. The keys of `sweep.grid` take their values from
    there unless they are given. Raises UserError for values that nothing has."""
    more = left_open(settings, overrides)
    if mistakes := sort_overrides(more, sweep=True)[2]:
        raise UserError(*mistakes)
    wanted = grid([*overrides, *more])
    problems = {tuple(w): problem for w in wanted if (problem := problem_of(w))}
    if settings.misfits == "skip":
        wanted = [w for w in wanted if not isinstance(problems.get(tuple(w)), Misfit)] or wanted
    return wanted, {tuple(w): problems[tuple(w)].args for w in wanted if tuple(w) in problems}


def left_open(settings: schema.Sweep, overrides: list[str]) -> list[str]:
    """The keys of `sweep.grid` that are not given, with their values."""
    given = {o.split("=", 1)[0] for o in overrides}
    return [f"{key}={','.join(map(str, values))}" for key, values in settings.grid.items() if key not in given]


def problem_of(overrides: list[str]) -> UserError | None:
    try:
        compose(overrides)
    except UserError as error:
        return error
    return None


def sweep_folder(settings: schema.Sweep, overrides: list[str]) -> Path:
    """A new folder below `outputs`, or the one to go on with."""
    if settings.resume is None:
        given = {o.key_or_group: o.value() for o in parsed(overrides) if not o.is_sweep_override()}
        root, name = given.get("outputs") or "outputs", given.get("name") or "sweep"
        try:
            return new_folder(Path(str(root)), f"{stamp()}_{name}")
        except OSError as error:
            raise UserError(f"outputs={root}: no folder can be made there: {error.strerror}") from None
    folder = Path(settings.resume)
    if not list(folder.glob("*/job.json")):
        raise UserError(f"sweep.resume={folder}: no folder of a sweep (it holds no */job.json)")
    return folder


def queue(ledger: Ledger, wanted: list[list[str]], problems: dict[tuple[str, ...], tuple[str, ...]]) -> list[Job]:
    """Enters the wanted jobs into the ledger, those that cannot be composed as failed; returns those to run."""
    jobs = ledger.jobs()
    known = {tuple(j.overrides): j for j in jobs}
    number = 1 + max((j.number for j in jobs), default=-1)
    todo = []
    for overrides in wanted:
        entry = known.get(tuple(overrides))
        if entry is None:
            entry, number = Job(number=number, overrides=overrides), number + 1
        if problem := problems.get(tuple(overrides)):
            ledger.write(entry, status="failed", reason="; ".join(problem))
        elif entry.status != "done":
            todo.append(ledger.write(entry, status="queued", reason=None))
    return todo


@contextlib.contextmanager
def launcher(ledger: Ledger, prune: bool, overrides: list[str]) -> Iterator[Launch]:
    """Hydra's launcher, ready to be given jobs."""
    from hydra import initialize_config_dir
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode
    from omegaconf.errors import OmegaConfBaseException

    own = [f"+sweep.folder={quoted(ledger.folder.resolve())}", f"sweep.prune={prune}"]
    files = f"hydra.sweep.dir={quoted(ledger.inside('.launcher').resolve())}"
    with initialize_config_dir(str(choices.CONF), version_base="1.3", job_name="ptmrun"):
        loader = GlobalHydra.instance().config_loader()
        try:
            settings = loader.load_configuration("config", [files, *overrides], run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=loader, callbacks=Callbacks())
            plugin = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=job, config=settings)
        except (HydraException, OmegaConfBaseException, ImportError) as error:
            name = next((o.split("=", 1)[1] for o in overrides if o.startswith("hydra/launcher=")), None)
            if name in EXTRAS:
                raise UserError(f"hydra/launcher={name}: not installed; pip install 'ptmrun[{name}]'") from None
            raise UserError(" ".join(str(error).split())) from None

        def launch(jobs: list[Job]) -> None:
            if not jobs:
                return
            try:
                results = plugin.launch([[*own, f"+sweep.job={j.number}"] for j in jobs], initial_job_idx=0)
            except Exception as error:  # a launcher may raise anything, when its workers die for instance
                if ledger.stopping():
                    raise KeyboardInterrupt from None
                again = assigned("sweep.resume", ledger.folder)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                raise UserError(f"the launcher failed ({reason}); go on with {shlex.quote(again)}") from error
            for result in results:
                _ = result.return_value  # raises what `job` raised
            if ledger.stopping():
                raise KeyboardInterrupt

        yield launch


def job(settings: Any) -> None:
    """One job, wherever the launcher runs it: starts `ptmrun`, follows it and writes down how it ended."""
    ledger, number = Ledger(Path(settings.sweep.folder)), settings.sweep.job
    with ledger.held(number) as lock:
        if lock is not None:
            attempt(ledger, ledger.job(number), settings.sweep.prune, lock)


def attempt(ledger: Ledger, entry: Job, prune: bool, lock: int) -> None:
    """Does a job that nothing else works on; its child holds the job's lock too, and keeps it when this process is killed."""
    begun, before = time.monotonic(), ledger.run(entry)
    if entry.status == "done":
        return
    while before is not None and locked(before):  # what a killed process has left, such as its loader's workers
        if time.monotonic() - begun > 20:
            other = entry.process or "another process"
            ledger.write(entry, status="failed", reason=f"{other} is working on its run; resume the sweep later")
            return
        time.sleep(0.2)
        before = ledger.run(entry)  # which may have ended well meanwhile
    folder = ledger.path(entry.number)
    made = entry.run if before is not None else None  # a run whose folder is gone is made anew
    entry = ledger.write(entry, status="running", process=this_process(), reason=None, run=made)
    if before is not None and before.manifest["status"] == "done":  # killed between the run's end and the ledger's entry
        code, asked, pruned = 0, False, False
    else:
        words = ["resume", str(before.folder)] if before is not None else [*entry.overrides, f"outputs={quoted(folder)}"]
        remove(folder / "stderr.txt")  # of an earlier attempt, or a link
        child = processes.start(words, folder / "stderr.txt", lock)
        with forwarded(child) as received:
            pruned = follow(child, ledger, entry, prune)
            asked = bool(received)
        code = child.exitcode or 0
    after = ledger.run(entry)
    status, reason = outcome(code, asked or ledger.stopping(), pruned, folder / "stderr.txt")
    changes: dict[str, Any] = {"status": status, "reason": reason, "seconds": entry.seconds + time.monotonic() - begun}
    if after:
        score, val_score, _ = after.score()
        changes |= {"run": after.folder.resolve().name, "score": score, "val_score": val_score}
    ledger.write(entry, **changes)
    if asked and not ledger.stopping():  # else the sweep is ending by itself, and waits for the other jobs
        raise KeyboardInterrupt


@contextlib.contextmanager
def forwarded(child: BaseProcess) -> Iterator[list[int]]:
    """Sends SIGINT and SIGTERM on to the child; yields the list of those received."""
    received: list[int] = []

    def send(signum: int, _: Any) -> None:
        received.append(signum)
        if child.pid and child.is_alive():
            os.kill(child.pid, signum)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {s: signal.signal(s, send) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def follow(child: BaseProcess, ledger: Ledger, entry: Job, prune: bool) -> bool:
    """Waits for the child, which is asked to stop when the sweep is; True when a search pruned it."""
    pruner, asked, looked = None, False, time.monotonic()
    if entry.trial is not None and prune:
        from ptmrun.sweeps.search import Pruner

        pruner = Pruner(ledger.folder, entry.trial)
    while child.is_alive():
        child.join(0.1)
        if ledger.stopping() and not asked:
            child.terminate()
            asked = True
        if pruner and time.monotonic() - looked > 1:
            looked, run = time.monotonic(), ledger.run(entry)
            if run and pruner.hopeless(run.metric_lines("probe_linear")):
                child.terminate()
                child.join()
                return True
    return False


def outcome(code: int, asked: bool, pruned: bool, errors: Path) -> tuple[str, str | None]:
    """(status, reason) from how a child ended."""
    if pruned:
        return "pruned", "its linear probe was below the median of the others"
    if code == 0:
        return "done", None
    if asked or code in (130, 143):
        return "interrupted", None
    if code < 0:
        name = signal.Signals(-code).name
        return "killed", f"by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [f"exit code {code}"]
    said = [line.removeprefix("ptmrun: ") for line in lines if line.startswith("ptmrun: ")]
    return "failed", "; ".join(x for x in said if not x.startswith("the run so far")) or lines[-1]


@contextlib.contextmanager
def shown(ledger: Ledger) -> Iterator[None]:
    """Tells of every job that ends, as it ends, whichever process it ran in."""
    stop, told = threading.Event(), {j.number for j in ledger.jobs() if j.status == "done"}
    if told:
        console.print(f"{len(told)} jobs were done before.")

    def tell() -> None:
        jobs = ledger.jobs()
        settings = varying(jobs)
        for entry in jobs:
            if entry.status in ENDED and entry.number not in told:
                told.add(entry.number)
                score = "" if entry.score is None else f", {entry.score:.3f}"
                why = f": {entry.reason}" if entry.reason else ""
                ended = f"{entry.status}{score}{why} ({entry.seconds:.0f} s)"
                line = f"[{len(told)}/{len(jobs)}] {title(settings[entry.number])}: {ended}"
                console.print(escape(line), style=None if entry.status == "done" else "yellow")

    def watch() -> None:
        while not stop.wait(0.5):
            tell()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        tell()


def finish(ledger: Ledger) -> None:
    """Enters jobs whose process is gone as killed, and writes the report."""
    for entry in ledger.jobs():
        if entry.status == "running" and not ledger.alive(entry):
            ledger.write(entry, status="killed", reason=f"its process ({entry.process}) is gone")
    report(ledger)


def report(ledger: Ledger) -> None:
    """Writes results.csv and report.html of what has been done; shows the table: one row a setting, seeds and folds together."""
    from ptmrun.reports import scores_table
    from ptmrun.sweeps import markdown_table

    jobs = ledger.jobs()
    rows = rows_of(ledger, jobs)
    if rows:
        console.print(scores_table.table(rows, "Scores (mean ± sd over seeds and folds)"))
        write_atomic(ledger.folder / "results.csv", secrets.masked(scores_table.csv_text(rows)))
        if text := markdown_table.markdown(rows):
            write_atomic(ledger.folder / "matrix.md", text)
            console.print(f"Table: {os.path.relpath(ledger.folder / 'matrix.md')}", markup=False)
    settings = varying(jobs)
    failures = [[title(settings[j.number]), j.status, j.reason or ""] for j in jobs if j.status != "done"]
    name, grids = ledger.folder.resolve().name, markdown_table.grids(rows)
    status = f"{len(jobs)} jobs, {len(failures)} of them without a result." if failures else f"{len(jobs)} jobs, all done."
    page = scores_table.page(rows, name, status=status, failures=failures, grids=grids)
    write_atomic(ledger.folder / "report.html", secrets.masked(page))
    console.print(f"Report: {os.path.relpath(ledger.folder / 'report.html')}", markup=False)


def rows_of(ledger: Ledger, jobs: list[Job]) -> list[Any]:
    """One row a setting (the overrides that vary, but for seed and fold), with the runs that are done."""
    from ptmrun.reports.scores_table import REPEATS, Row

    settings = varying(jobs)
    rows: dict[str, Row] = {}
    for entry in jobs:
        run = ledger.run(entry)
        if entry.status == "done" and run is not None:
            setting = {k: v for k, v in settings[entry.number].items() if k not in REPEATS}
            row = rows.setdefault(title(setting), Row(setting))
            row.runs.append(run)
            row.seconds += sum(run.manifest.get("wall_s", {}).values())
    return list(rows.values())
