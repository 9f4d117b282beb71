"""ptmrun's loop against one that is written by hand and does the same: model, batches, optimizer, clipping, schedule. What
bf16 gains, and how much of the processor's matrix speed a step of the default objective reaches."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ptmrun.benchmarks.clock import cpu, in_turns
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import CPU, Setting, bf16_pays, default_precision, setting
from ptmrun.training import device

TASKS = {
    "mim": ["task=mim", "pretrain.steps=6"],
    "simmim": ["task=simmim", "pretrain.steps=4"],
    "mlm": ["model=bert", "task=mlm", "pretrain.steps=6"],
    "clm": ["model=gpt", "task=clm", "pretrain.steps=5"],
}
SIDE, PRODUCTS = 1024, 10  # of the matrices that are multiplied, and how often


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    precision = default_precision()
    for task, words in TASKS.items():
        one = setting(words, precision)
        values = in_turns(partial(one.fit, folder), one.by_hand, pairs)
        yield Row("loop", f"{task}: the loop / a hand-written loop ({precision})", "CPU s", values, most=1.02)
        if bf16_pays():
            values = in_turns(one.by_hand, setting(words, "fp32").by_hand, pairs)
            yield Row("loop", f"{task}: bf16 steps / fp32 steps", "CPU s", values)
    if not bf16_pays():
        ratio = device.known_bf16_speed(CPU, 1)
        yield Row(
            "loop", "bf16 steps / fp32 steps", reason=f"bf16 products are {ratio:g} times as fast as fp32 on this processor"
        )
    yield share(setting(TASKS["mim"], precision), pairs)


def share(one: Setting, pairs: int) -> Row:
    """The operations of a step by its CPU time, over those of a large matrix product by its own."""
    operand = torch.ones(SIDE, SIDE, dtype=torch.bfloat16 if one.precision == "bf16" else torch.float32)
    step = one.flops() * one.cfg.pretrain.steps

    def product() -> float:
        return 2 * SIDE**3 * PRODUCTS / cpu(lambda: [operand @ operand for _ in range(PRODUCTS)]) / 1e9

    values = in_turns(lambda: step / one.by_hand() / 1e9, product, pairs)
    return Row("loop", f"mim: a step / a matrix product ({one.precision})", "GFLOP/s", values, least=0.45)
