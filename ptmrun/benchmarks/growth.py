"""What a sample of a step costs as the data set, its samples or the network grow: the same with more samples, and in proportion
to the operations with larger ones."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ptmrun import rng
from ptmrun.benchmarks.clock import cpu, in_turns
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import CPU, Setting, setting
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.split import Split

COUNTS = (10**3, 10**4, 10**5, 10**6)
IMAGES = ["dataset=digits", "task=mim", "model.size=micro"]
TEXTS = ["model=gpt", "task=clm", "pretrain.steps=3", "pretrain.batch_size=8"]
LARGER = {  # what grows: {its size: what is typed}
    "pixels a side": {side: [*IMAGES, "pretrain.steps=3", "pretrain.batch_size=32", "model.patch=7", f"dataset.image_size={side}"]
                      for side in (28, 56, 112)},
    "tokens": {length: [*TEXTS, f"model.length={length}"] for length in (128, 256, 512)},
    "width": {width: [*TEXTS, f"model.shape=[{width},2,{width // 64}]"] for width in (128, 256, 512)},
}  # fmt: skip
TOLERANCE = 1.1  # times the operations


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    few, *others = (many_images(count) for count in COUNTS)
    for many in others:
        name = f"a step on {len(many.batches.split):,} samples / on {COUNTS[0]:,}"
        yield Row("growth", name, "CPU s", in_turns(partial(cost, many, folder), partial(cost, few, folder), pairs), most=1.05)
    for what, sizes in LARGER.items():
        (least, words), *more = sizes.items()
        small = setting(words)
        for size, words in more:
            large = setting(words)
            operations = large.flops() / small.flops()
            values = in_turns(large.by_hand, small.by_hand, pairs)
            name = f"{size} {what} / {least}, {operations:.2f} times the operations"
            yield Row("growth", name, "CPU s", values, most=TOLERANCE * operations)


def many_images(count: int) -> Setting:
    """The same training on so many images of 8x8 pixels."""
    one = setting([*IMAGES, "pretrain.steps=8"])
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=rng.generator(0, "bench"))
    split, loop = Split(pixels, None, torch.arange(count), None), one.cfg.pretrain
    batches = Batches(split, one.data.processor(CPU), one.cfg.dataset.augment, loop.augment, loop.batch_size, 1, 0, "bench")
    return replace(one, batches=batches)


def cost(one: Setting, folder: Path) -> float:
    """CPU seconds of the steps, with their share of drawing the order of an epoch, which was there before they began."""
    count, loop = len(one.batches.split), one.cfg.pretrain
    order = cpu(lambda: rng.permutation(0, "bench", count))
    return one.fit(folder) + order * loop.steps * loop.batch_size / count
