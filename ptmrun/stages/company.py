"""The processes of one run: with `device.processes` the main one starts the others, torchrun starts them all. The main one runs
the stages and alone writes into the run folder; the others wait and take part in each training that it calls them to."""

import contextlib
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from ptmrun.config import choices, secrets
from ptmrun.config.launch import MEETING, launched
from ptmrun.errors import UserError, printable
from ptmrun.runs import config_file
from ptmrun.runs.folder import Run
from ptmrun.stages.context import Context, planned
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import Trial, chosen_labels, finetune_settings, new_model
from ptmrun.storage.files import end_with_parent
from ptmrun.training import device
from ptmrun.training import loop as training
from ptmrun.training.processes import ALONE, Lost, Processes
from ptmrun.training.signals import Stop, check_stop

PARENT = "PTMRUN_PARENT"  # in the environment of processes that the main one starts: its number
POLL = 0.1  # seconds between looks at whether the others are there
SLOW = 5.0  # seconds in which a process that has ended is seen to have
PATIENCE = datetime.timedelta(days=30)  # the others wait as long as the main one evaluates
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


@dataclass
class Company:
    """The others, as the main process sees them. `started`: those that it has started itself, which meet in `folder`."""

    run: Run
    stop: Stop
    size: int
    folder: Path
    started: list[subprocess.Popen] = field(default_factory=list)
    processes: Processes = ALONE

    def join(self) -> Processes:
        """Waits until all are there, and tells them the run. Raises UserError when one of them has ended."""
        if self.size == 1:
            return ALONE
        while not all((self.folder / f"ready-{rank}").exists() for rank in range(1, len(self.started) + 1)):
            check_stop(self.stop)
            if why := self.ended():
                raise UserError(why)
            time.sleep(POLL)
        self.processes = meet(0, self.size, self.folder if self.started else None, self.lost)
        self.processes.send(str(self.run.folder.resolve()))
        return self.processes

    def lost(self, error: str) -> str:
        """What to say when an exchange with the others has failed. Raises Interrupted when a signal was the cause."""
        check_stop(self.stop)
        begun = time.monotonic()
        while not (why := self.ended()) and time.monotonic() - begun < SLOW:
            time.sleep(POLL)
        return why or f"device.processes: another process has ended ({error}); go on with: ptmrun resume {self.run.typed}"

    def ended(self) -> str:
        """Which of those that it has started has ended and why, or nothing."""
        for rank, child in enumerate(self.started, 1):
            if (code := child.poll()) is not None:
                text = self.errors(rank).read_text(errors="replace").strip()
                if "\n" in text:
                    self.run.note(f"process {rank + 1} of {self.size}:\n{text}")
                name = f"process {rank + 1} of {self.size}"
                what = f" ended with exit code {code}"
                if code < 0:
                    short = ", as the system does where memory is short" if -code == signal.SIGKILL else ""
                    what = f" was ended by {signal.Signals(-code).name}{short}"
                elif text:
                    what = f": {text.splitlines()[-1].removeprefix(f'ptmrun: {name}: ').removeprefix('ptmrun: ')}"
                return f"device.processes: {name}{what}; go on with: ptmrun resume {self.run.typed}"
        return ""

    def errors(self, rank: int) -> Path:
        return self.folder / f"errors-{rank}"

    def start(self) -> None:
        """Starts the others: each is `ptmrun resume` of this run, and told by its environment that it is not the main one."""
        common = {MEETING: str(self.folder), PARENT: str(os.getpid()), "WORLD_SIZE": str(self.size)}
        if not choices.PACKAGE.parent.name.endswith("-packages"):  # the same source tree
            known = filter(None, [str(choices.PACKAGE.parent), os.environ.get("PYTHONPATH")])
            common["PYTHONPATH"] = os.pathsep.join(known)
        for rank in range(1, self.size):
            environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(self.size)}
            words = [sys.executable, "-P", "-m", "ptmrun", "resume", str(self.run.folder.resolve())]
            with open(self.errors(rank), "wb") as errors:
                self.started.append(
                    subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
                )

    def dismiss(self) -> None:
        """There is nothing left to train."""
        if self.processes.size > 1:
            self.processes.send(None)

    def end(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in self.started:
            child.kill()
            child.wait()


@contextlib.contextmanager
def company(run: Run, size: int, stop: Stop) -> Iterator[Company]:
    """The processes of a run, started where they are not there yet; the others end when what runs inside has."""
    with tempfile.TemporaryDirectory(prefix="ptmrun-") as folder:
        them = Company(run, stop, size, Path(folder))
        try:
            if size > 1 and not launched():
                them.start()
            yield them
        finally:
            them.end()


def meet(rank: int, size: int, folder: Path | None, lost: Any) -> Processes:
    """Waits for all processes: those of one machine in a folder, those that torchrun has started by its store."""
    if folder:
        store: dist.Store = dist.FileStore(str(folder / "meeting"), size)
        if sys.platform in LOOPBACK:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    else:  # which holds addresses of processes that were there before torchrun started them again
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=PATIENCE))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Processes(rank, size, here, lost)


class Follower(Run):
    """The run of the main process, as another one sees it, which reads what is there and neither writes nor speaks."""

    silent = True

    def write(self, name: str, data: bytes | str) -> Path:
        return self.path(name)

    def update(self, **entries: Any) -> None:
        self.manifest = {**self.manifest, **entries}

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def metric(self, line: dict[str, Any]) -> None: ...

    def cut_metrics(self, tags: dict[str, Any], step: int) -> None: ...


def follow() -> NoReturn:
    """Takes part in the trainings of the run that the main process tells, until that one has no more or ends."""
    rank, size, meeting, stop = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ.get(MEETING), Stop()
    if meeting:
        end_with_parent()
        if os.getppid() != int(os.environ[PARENT]):
            sys.exit(1)
        Path(meeting, f"ready-{rank}").touch()
    try:
        with stop.handled():
            processes = meet(
                rank, size, Path(meeting) if meeting else None, lambda _: "device.processes: the main process has ended"
            )
            folder = Path(processes.send()[0])
            run = Follower.open(folder)
            cfg = config_file.load(run.sound("config.yaml"))
            device.check_processes(cfg.device.name, size)
            context = prepare(run, cfg, stop)
            context.processes = processes
            while (order := processes.send()[0]) is not None:
                run.manifest = Run.open(folder).manifest
                take_part(context, **order)
            dist.destroy_process_group()
    except Lost:  # the main process says why
        sys.exit(1)
    except UserError as error:
        for line in error.args:
            print(f"ptmrun: process {rank + 1} of {size}: {printable(secrets.masked(str(line)))}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def take_part(
    context: Context, tags: dict[str, Any], steps: int, trial: list[Any] | None, probe_at: list[int], save_last: bool
) -> None:
    """Trains what the main process does: the objective, or the model of a trial."""
    cfg, data = context.cfg, context.data
    if trial is None:
        model: Any = context.objective()
        split, loop, seed = data.corpus, cfg.pretrain, cfg.seed
    else:
        one = Trial(*trial)
        model, split, seed = new_model(context, one)[0], chosen_labels(context, one), one.seed
        loop = finetune_settings(cfg, one, len(split))
    looks = frozenset(probe_at)
    with planned(context, model, split, loop, steps, seed, tags, probe_at=looks, save_last=save_last) as (batches, plan):
        training.fit(model, batches, plan)


def launch() -> str | None:
    """Which launch of torchrun on this machine a process is of, also when that has started it again; None for no launch."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return name and f"{name} {platform.node()} {os.getppid()}"


def run_before(outputs: Path) -> Run | None:
    """The run that the main process was at work on when one of them died and torchrun started all of them again."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    runs = (Run.open(file.parent) for file in sorted(outputs.glob("2*/manifest.json"), reverse=True))
    return next((run for run in runs if run.manifest.get("launch") == launch()), None)
