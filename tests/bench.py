"""`make bench`: ratios from interleaved runs in one process, one thread, CPU time. Prints; asserts nothing.

For images (bench_images.py) and text (bench_text.py):
1. The loop against a hand-written PyTorch loop doing the same work (same model, batches, optimizer, clipping, schedule).
2. bfloat16 against float32 for the same steps on this processor.
3. End to end, data included: transformers' Trainer (bench_trainer.py) against `train.fit` by defaults, on the same model sizes,
   data, batch and optimizer settings; and the loss of both on the same held-out samples with the same parts hidden.
4. CPU seconds of the command line: help, a mistake.

`python tests/bench.py images|text|cli` runs one of them.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench_images
import bench_text

from ptmrun.training import device


def command_line(folder: Path) -> None:
    for argv in (["--help"], ["model=vitt"]):
        times = []
        for _ in range(5):
            before = os.times()
            subprocess.run([sys.executable, "-m", "ptmrun", *argv], capture_output=True, check=False)
            after = os.times()
            times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        title = f"ptmrun {' '.join(argv)}: CPU seconds"
        print(f"{title:<58} {statistics.median(times):.2f}  ({min(times):.2f} to {max(times):.2f})")


def main() -> None:
    parts = {"images": bench_images.main, "text": bench_text.main, "cli": command_line}
    device.setup(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or parts:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
