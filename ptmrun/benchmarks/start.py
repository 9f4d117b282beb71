"""CPU seconds of the command line: to the first step, over a Python that imports what that needs; help; a mistake."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ptmrun.benchmarks.clock import in_turns, of_ptmrun, of_python
from ptmrun.benchmarks.row import Row

PAIRS = 3  # of starts, at most
IMPORTS = (
    "import torch; from transformers import ViTConfig, ViTForImageClassification, ViTMAEConfig, ViTModel; "
    "from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder"
)
UNTIL_FIRST_STEP = (
    "import os, sys; from ptmrun.cli import main; from ptmrun.runs.folder import Run; Run.metric = lambda *_: os._exit(0); "
    "main(sys.argv[1:])"
)
ONE_THREAD = ["device.threads=1", "device.workers=0"]
FIRST_STEP = ["dataset=digits", "model=vit", "task=mim", "stage=pretrain", "pretrain.steps=1", "pretrain.probes=0", *ONE_THREAD]


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    first = partial(of_python, "-c", UNTIL_FIRST_STEP, *FIRST_STEP, f"outputs={folder}")
    values = in_turns(first, partial(of_python, "-c", IMPORTS), min(pairs, PAIRS), warm=False)
    yield Row("start", "ptmrun to the first step / importing torch and the model's class", "CPU s", values, most=1.1)
    values = [[of_ptmrun("--help")] for _ in range(pairs)]
    yield Row("start", "ptmrun --help", "CPU s", values, most=0.25)
    for word in ("model=vitt", "task.mask_rato=0.5"):
        values = [[of_ptmrun(word, code=2)] for _ in range(pairs)]
        yield Row("start", f"ptmrun {word}, a mistake", "CPU s", values, most=0.35)
