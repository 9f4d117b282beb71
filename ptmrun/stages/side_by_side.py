"""Trainings of a run side by side on a CPU, each in a process of its own with one thread: small networks gain little from more.

A child is forked, so that data and weights are there already, and saves what it trains in the run folder as ever. What it would
write into files that the trainings share (manifest.json, metrics.jsonl, log.txt) goes through a pipe to the parent, which writes
it while the child waits: no state is saved before the lines that belong to it, whenever the parent is killed. The stages then go
on as after an interruption: they see in files what is trained.
"""

import contextlib
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from ptmrun.errors import Interrupted, UserError
from ptmrun.runs.folder import Run
from ptmrun.runs.progress import Bar
from ptmrun.stages.context import Context
from ptmrun.storage.files import end_with_parent

SMALL = 5_000_000  # parameters, up to which more threads gain a training less than they would give as trainings of their own
POLL = 0.2  # seconds between looks at whether a signal is pending


def possible(context: Context, parameters: int) -> bool:
    """Whether trainings of a network with so many parameters go side by side: depends on the config and the operating system."""
    device = context.cfg.device
    wanted = parameters <= SMALL if device.side_by_side == "auto" else device.side_by_side
    alone = wanted and device.processes == 1
    return alone and context.device.type == "cpu" and device.threads > 1 and not device.compile and sys.platform == "linux"


def at_once(context: Context, parameters: int, tasks: int) -> float:
    """How many of so many trainings go on at the same time, in the mean."""
    return tasks / math.ceil(tasks / context.cfg.device.threads) if tasks > 1 and possible(context, parameters) else 1.0


@contextlib.contextmanager
def one_thread(context: Context) -> Iterator[None]:
    """What runs inside has one thread, as a training beside others."""
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(context.cfg.device.threads)


def train(context: Context, title: str, tasks: list[Callable[[], Any]], steps: int) -> None:
    """Runs all tasks, of so many steps in all, as many at a time as there are threads. Each leaves its result in the run folder.

    Raises what a task raised, after the others have saved their state; Interrupted when all of them have after a signal."""
    waiting, children, errors = list(tasks), list[Child](), list[BaseException]()
    threads, every = context.cfg.device.threads, context.cfg.finetune.log_every
    with Bar(context.run, f"{title}, {threads} at a time", steps, quiet=True) as bar:
        done = 0
        try:
            while True:
                if context.stop.pending() or errors:
                    waiting.clear()
                    for child in children:
                        child.stop()
                while waiting and len(children) < threads:
                    children.append(Child.start(context, waiting.pop(0), children))
                if not children:
                    break
                ready = wait([child.pipe for child in children], POLL)
                for child in [child for child in children if child.pipe in ready]:
                    try:
                        name, arguments = child.pipe.recv()
                    except EOFError:
                        children.remove(child)
                        errors += child.end()
                        continue
                    if name == "raise":
                        errors += arguments
                        continue
                    getattr(context.run, name)(*arguments)
                    with contextlib.suppress(BrokenPipeError):  # it was killed, which the next turn sees
                        child.pipe.send("written")
                    if name == "metric":
                        done = min(done + every, steps)
                        bar.show(done, {})
        finally:
            for child in children:
                child.kill()
    if signum := context.stop.pending():
        raise Interrupted(signum)
    for error in sorted(errors, key=lambda error: isinstance(error, Interrupted)):  # these were stopped because of another
        raise error


@dataclass
class Child:
    """A process that runs a task, and the pipe between it and its parent."""

    pid: int
    pipe: Connection
    asked: bool = False

    @classmethod
    def start(cls, context: Context, task: Callable[[], Any], others: "list[Child]") -> "Child":
        mine, its = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        if pid := os.fork():
            its.close()
            return cls(pid, mine)
        try:
            end_with_parent()
            if os.getppid() == parent:
                for pipe in [mine, *(child.pipe for child in others)]:
                    pipe.close()
                torch.set_num_threads(1)  # the other threads are in the parent only: waiting for them would have no end
                threadpool_limits(1)
                context.run = Remote(context.run, its)
                task()
        except BaseException as error:
            with contextlib.suppress(OSError):
                try:
                    its.send(("raise", [error]))
                except Exception:  # what cannot be sent
                    its.send(("raise", [RuntimeError("".join(traceback.format_exception(error)))]))
        finally:
            os._exit(0)

    def stop(self) -> None:
        """Asks it to save its state, once: a second signal would not let it do so."""
        if not self.asked:
            self.asked = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def end(self) -> list[UserError]:
        """Waits for its end; what there is to say where a signal was the cause."""
        _, status = os.waitpid(self.pid, 0)
        if not os.WIFSIGNALED(status):
            return []
        why = f"a training was ended by {signal.Signals(os.WTERMSIG(status)).name}, as the system does where memory is short"
        return [UserError(f"device.side_by_side: {why}; a new run with device.side_by_side=false has one training at a time")]


class Remote(Run):
    """The parent's run, as a child sees it."""

    silent = True

    def __init__(self, run: Run, pipe: Connection):
        super().__init__(run.folder, run.manifest)
        self.pipe = pipe

    def update(self, **entries: Any) -> None:
        self.manifest = {**self.manifest, **entries}

    def tell(self, name: str, *arguments: Any) -> None:
        """Lets the parent call its run's method of that name, and waits until it has."""
        self.pipe.send((name, arguments))
        self.pipe.recv()

    def say(self, text: str) -> None:
        self.tell("say", text)

    def note(self, text: str) -> None:
        self.tell("note", text)

    def metric(self, line: dict[str, Any]) -> None:
        self.tell("metric", line)

    def cut_metrics(self, tags: dict[str, Any], step: int) -> None:
        self.tell("cut_metrics", tags, step)

    def spend(self, name: str, seconds: float) -> None:
        self.tell("spend", name, seconds)

    def replace_recoveries(self, purpose: str, events: list[dict[str, Any]]) -> None:
        super().replace_recoveries(purpose, events)
        self.tell("replace_recoveries", purpose, events)
