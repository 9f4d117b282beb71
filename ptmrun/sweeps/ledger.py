"""The ledger of a sweep: one folder a job, `job.json` in it, written by whichever process works on the job.

outputs/<time>_sweep/
    007/job.json          overrides, status, score, time, run folder
    007/<time>_<name>/    the run (a job that is tried again may have several; `latest` is the last)
    007/stderr.txt        what the job complained of
    results.csv report.html
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ptmrun.config import secrets
from ptmrun.config.schema import Strict
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run, locked
from ptmrun.storage.files import write_atomic
from ptmrun.storage.safe_read import plain_json

ENDED = ("done", "failed", "killed", "interrupted", "pruned")


class Job(Strict):
    """One job. `score` is what its run is ranked by: the score on the test split, or the last linear probe of a pretraining."""

    number: Annotated[int, Field(ge=0)]
    overrides: list[Annotated[str, Field(pattern=r"^[^=\s]+=")]]
    status: Literal["queued", "running", "done", "failed", "killed", "interrupted", "pruned"] = "queued"
    score: float | None = None
    val_score: float | None = None
    seconds: float = 0.0  # of all attempts
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    reason: str | None = None
    process: str | None = None  # host:pid
    trial: int | None = None  # of a search


class Ledger:
    """The jobs of a sweep folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def inside(self, name: str) -> Path:
        """A path in the folder. Raises UserError when a link is there."""
        path = self.folder / name
        if path.is_symlink():
            raise UserError(f"{path}: a link; refused")
        return path

    def path(self, number: int) -> Path:
        return self.inside(f"{number:03d}")

    def jobs(self) -> list[Job]:
        """Every job, in order. Raises UserError for a ledger that is none."""
        files = sorted(self.folder.glob("*/job.json"), key=lambda p: (len(p.parent.name), p.parent.name))
        return [self.read(path) for path in files]

    def job(self, number: int) -> Job:
        return self.read(self.path(number) / "job.json")

    def read(self, path: Path) -> Job:
        self.inside(path.parent.name)
        try:
            job = Job.model_validate(plain_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; not a job of a sweep") from None
        if path.parent.name != f"{job.number:03d}":
            raise UserError(f"{path}: says it is job {job.number}; not a job of a sweep")
        return job

    def write(self, job: Job, **changes: Any) -> Job:
        """Saves a job with changes; returns it."""
        job = Job.model_validate({**job.model_dump(), **secrets.masked(changes)})
        write_atomic(self.path(job.number) / "job.json", job.model_dump_json(indent=2) + "\n")
        return job

    def run(self, job: Job) -> Run | None:
        """The run folder of a job's last attempt, where there is a whole one."""
        folder = self.path(job.number) / (job.run or "latest")
        if not folder.exists() or not folder.resolve().is_relative_to(self.folder.resolve()):
            return None
        try:
            return Run.open(folder)
        except UserError:
            return None

    @contextlib.contextmanager
    def held(self, number: int) -> Iterator[int | None]:
        """The job's lock, as the number of an open file, which its holder's children may inherit and then hold as well; waits for
        whoever holds it. None when the sweep is stopping."""
        path = self.path(number) / ".lock"
        if path.is_symlink():
            raise UserError(f"{path}: a link; refused")
        with open(path, "a") as file:
            while not self.stopping():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.2)
            yield None if self.stopping() else file.fileno()

    def stop(self) -> None:
        """Asks the jobs that run to save and end, whichever process works on them, and the others not to begin."""
        self.inside(".stop").touch()

    def stopping(self) -> bool:
        return self.inside(".stop").exists()

    def alive(self, job: Job) -> bool:
        """Whether a process still works on the job's run: it holds the run's lock."""
        run = self.run(job)
        return run is not None and locked(run)


def varying(jobs: list[Job]) -> dict[int, dict[str, str]]:
    """Of every job (by its number) the overrides that not all of them have: {key: value}."""
    given = {j.number: dict(o.lstrip("+").split("=", 1) for o in j.overrides) for j in jobs}
    keys = dict.fromkeys(k for settings in given.values() for k in settings)
    differ = [k for k in keys if len({settings.get(k) for settings in given.values()}) > 1]
    return {number: {k: settings[k] for k in differ if k in settings} for number, settings in given.items()}


def title(setting: dict[str, str]) -> str:
    return " ".join(f"{k}={v}" for k, v in setting.items()) or "the only job"


def this_process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
