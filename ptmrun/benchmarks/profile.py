"""What the time of a step is spent on, for objectives as they come: making the batch, and kinds of operations. By the clock, as
PyTorch's profiler measures."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import Setting, default_precision, setting

OBJECTIVES = {
    "mim": ["model=vit", "task=mim"],
    "mae": ["model=vit", "task=mae"],
    "simmim": ["model=vit", "task=simmim"],
    "simclr": ["model=cnn", "task=simclr"],
    "mlm": ["model=bert", "task=mlm"],
    "clm": ["model=gpt", "task=clm"],
    "plm": ["model=xlnet", "task=plm"],
    "clip": ["model=clip", "task=clip"],
    "dalle": ["model=dalle", "task=dalle"],
    "wav2vec2": ["model=wav2vec2", "task=wav2vec2"],
}
KINDS = {  # of PyTorch's operations, forward and backward, by their names; the first that fits
    "attention": "attention",
    "convolutions": "conv",
    "matrix products": "mm$|linear|einsum",
    "activations": "gelu|relu|threshold|clamp|softmax|silu|tanh",
    "random numbers": "bernoulli|uniform|normal_|random|exponential",
    "the optimizer": "foreach|fused|[Oo]ptimizer",
}
STEPS = 3


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    for name, words in OBJECTIVES.items():
        for kind, share in shares(setting([*words, f"pretrain.steps={STEPS}"], default_precision())).items():
            yield Row("profile", f"{name}: {kind}", "%", [[100 * share]])


def shares(one: Setting) -> dict[str, float]:
    """Of the time of a step; `the rest` are other operations, Python and the profiler itself."""
    one.by_hand()  # warms up
    whole, step = profiled(one.by_hand)
    made, batch = profiled(lambda: [None for _ in one.batches.iterate(0, STEPS)])
    kinds = {kind: (step[kind] - batch[kind]) / whole for kind in KINDS}
    return {"making the batch": made / whole, **kinds, "the rest": 1 - made / whole - sum(kinds.values())}


def profiled(work: Callable[[], object]) -> tuple[float, Counter[str]]:
    """(seconds, those of each kind of operation)."""
    spent = Counter[str]()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        begun = time.perf_counter()
        work()
        whole = time.perf_counter() - begun
    for event in record.key_averages():
        kind = next((kind for kind, names in KINDS.items() if re.search(names, event.key)), None)
        if kind:
            spent[kind] += event.self_cpu_time_total / 1e6
    return whole, spent
