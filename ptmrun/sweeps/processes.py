"""Processes that jobs run in: forked from one that has imported what they need, so that a job costs little beyond its work. A
crash, a leak or an empty memory stays in one of them."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

NEEDED = [  # by every run; imported once, before any thread is there
    "hydra.compose",
    "hydra.core.override_parser.overrides_parser",
    "ptmrun.cli",
    "ptmrun.data.images.inputs",
    "ptmrun.data.images.load",
    "ptmrun.data.text.load",
    "ptmrun.stages.run",
    "matplotlib.backends.backend_agg",
    "sklearn.linear_model",
    "sklearn.neighbors",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "torchvision.transforms.v2",
    "transformers.image_processing_utils",
    "transformers.modeling_layers",
    "transformers.modeling_utils",
]


class Held:
    """The number of an open file that another process gets too; there it is a number of its own."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self) -> tuple:
        return number_of, (reduction.DupFd(self.number),)


def number_of(copy: Any) -> int:
    return copy.detach()


def start(words: list[str], errors: Path, lock: int) -> BaseProcess:
    """`ptmrun` with these words; what it prints to standard error goes to a new file, and it holds the open file `lock` too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(NEEDED)
    process = context.Process(target=run, args=(words, os.getcwd(), dict(os.environ), errors, Held(lock)))
    process.start()
    return process


def run(words: list[str], folder: str, environment: dict[str, str], errors: Path, lock: int) -> None:
    """In the process: as if it had been typed."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    null = os.open(os.devnull, os.O_RDWR)
    file = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    for number, target in enumerate((null, null, file)):
        os.dup2(target, number)
    sys.argv = ["ptmrun", *words]
    try:
        runpy.run_module("ptmrun", run_name="__main__")
    except Exception:  # multiprocessing would print it as it is
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
