"""CPU seconds: of work in this process, of commands with all processes that they start, and of two kinds of work in turns."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch

from ptmrun.errors import UserError

# Runs a command and prints the CPU seconds of all its processes, of those too whose parent has ended before them (under Linux).
MEASURE = """
import ctypes, os, subprocess, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
try:
    while True:
        os.wait()
except ChildProcessError:
    spent = os.times()
    print(spent.children_user + spent.children_system)
sys.exit(code)
"""


def cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def in_turns(a: Callable[[], float], b: Callable[[], float], pairs: int, warm: bool = True) -> list[list[float]]:
    """What `a` and `b` return, pair by pair, in an order that is swapped from one to the next; each warms up once before."""
    if warm:
        a(), b()
    return [[a(), b()] if i % 2 else [b(), a()][::-1] for i in range(pairs)]


def of_python(*words: str, code: int = 0) -> float:
    """CPU seconds of Python with these words, on one thread. Raises UserError where it ends with another exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", MEASURE, sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != code:
        told = "; ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
        raise UserError(f"bench: python {' '.join(words[:8])}: {told}")
    return float(done.stdout)


def of_ptmrun(*words: str, code: int = 0) -> float:
    """The same of the command line."""
    return of_python("-m", "ptmrun", *words, code=code)


@contextlib.contextmanager
def as_installed() -> Iterator[None]:
    """Another library is not slowed down by what ptmrun asks of PyTorch."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)
