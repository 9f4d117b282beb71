"""`ptmrun bench`: how fast this is here, beside other ways of doing the same."""

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path

from ptmrun.benchmarks import PARTS
from ptmrun.commands.table import Call
from ptmrun.errors import UserError, nearest
from ptmrun.runs.console import console
from ptmrun.storage.files import write_atomic


def command(call: Call) -> int:
    """Exit code 0 whatever is measured. With `out`, what has been measured stands there after each row."""
    for name in call.names:
        if name not in PARTS:
            raise UserError(f"bench {name}: no such part{nearest(name, PARTS)}")
    out = Path(call.options.out) if call.options.out else None
    if out and os.path.lexists(out):
        raise UserError(f"out={out}: is there already; choose a file that is not")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else its threads are warned of at every fork
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else PyTorch's profiler says when it begins and ends
    from ptmrun.benchmarks import row  # imports torch: not before the words are known to be right
    from ptmrun.training import device

    device.setup(1)
    if (before := row.load()) > row.BUSY:
        print(f"ptmrun: Warning: load average {before:.2f}: other work runs beside this, ratios will scatter", file=sys.stderr)
    rows: list[row.Row] = []

    def keep() -> None:
        if out:
            write_atomic(out, json.dumps(row.document(rows, before), indent=2) + "\n")

    keep()  # before anything is measured, as it may not be possible
    with tempfile.TemporaryDirectory(prefix="ptmrun-") as folder:
        for name in dict.fromkeys(call.names or PARTS):
            for one in importlib.import_module(f"ptmrun.benchmarks.{name}").rows(call.options.pairs, Path(folder)):
                rows.append(one)
                console.print(str(one), markup=False)
                keep()
    return 0
