"""What a job of a sweep costs beyond the work of its run: two more jobs, less that work in a process that has done it before."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from ptmrun.benchmarks.clock import cpu, of_ptmrun
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.start import FIRST_STEP, PAIRS
from ptmrun.compose import compose
from ptmrun.stages import run


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    words = [*FIRST_STEP, f"outputs={folder}"]

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run.run(compose(words), words)

    work()
    values = []
    for _ in range(min(pairs, PAIRS)):
        one, three = (of_ptmrun("-m", f"seed={seeds}", *words) for seeds in ("1", "1,2,3"))
        values.append([(three - one) / 2 - cpu(work)])
    yield Row("sweep", "a job of a sweep, beyond its work", "CPU s", values, most=0.5)
