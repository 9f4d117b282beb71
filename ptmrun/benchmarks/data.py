"""Making batches: ptmrun's against torchvision's transforms v2, or transformers' collator, in PyTorch's DataLoader."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ptmrun.benchmarks import transformers_images, transformers_texts
from ptmrun.benchmarks.clock import as_installed, cpu, in_turns
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import CPU, Setting, setting

PICTURES, SIDE = 256, 64  # JPEG files of 240x180, and of what they are made to


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    one = setting(["task=simmim", "pretrain.steps=16"])
    transform = v2.Compose(augmentation(one))

    def collate_pictures(pictures: list[Image.Image]) -> torch.Tensor:
        return torch.stack([transform(picture) for picture in pictures])

    yield against(
        "images in memory, augmented: ptmrun / torchvision v2", one, transformers_images.pictures(one), pairs, collate_pictures
    )
    draw(folder / "jpegs")
    words = ["dataset=imagefolder", f"dataset.root={folder / 'jpegs'}", f"dataset.image_size={SIDE}", "dataset.cache_gb=0"]
    one = setting([*words, "task=simmim", "pretrain.steps=4", "pretrain.batch_size=64"])
    files = ImageFolder(folder / "jpegs", v2.Compose([v2.Resize(SIDE), v2.CenterCrop(SIDE), *augmentation(one)]))
    yield against("JPEG files, decoded and augmented: ptmrun / torchvision v2", one, files, pairs)
    one = setting(["model=bert", "task=mlm", "pretrain.steps=200"])
    sequences, collate = transformers_texts.examples(one)
    yield against("texts, packed and masked: ptmrun / transformers' collator", one, sequences, pairs, collate)


def against(name: str, one: Setting, dataset: Any, pairs: int, collate: Callable | None = None) -> Row:
    """As many batches of both sides."""
    steps, size = one.cfg.pretrain.steps, one.cfg.pretrain.batch_size
    masking: Any = getattr(one.objective, "masking", None)

    def ours() -> None:
        for [batch] in one.batches.iterate(0, steps):
            if masking:
                masking(batch["inputs"], batch["rows"])

    def theirs() -> None:
        with as_installed():
            for _ in islice(epochs(), steps):
                pass

    def epochs() -> Iterator[Any]:
        while True:
            yield from DataLoader(dataset, size, shuffle=True, drop_last=True, collate_fn=collate)

    return Row("data", name, "CPU s", in_turns(lambda: cpu(ours), lambda: cpu(theirs), pairs), most=1.0)


def augmentation(one: Setting) -> list[Callable]:
    """What ptmrun does to an image, by torchvision: picture -> float [C, S, S], normalised."""
    options, strength = one.cfg.dataset.augment, one.cfg.pretrain.augment
    zoom = (1 + options.scale) ** strength
    moved = v2.RandomAffine(
        strength * options.rotate,
        (strength * options.shift, strength * options.shift),
        (1 / zoom, zoom),
        strength * options.shear,
        v2.InterpolationMode.BILINEAR,
    )
    mean, std = one.data.processor(CPU).preprocessing
    flip = [v2.RandomHorizontalFlip()] if options.flip else []
    return [moved, *flip, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def draw(folder: Path) -> None:
    """JPEG files in two class folders."""
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        file = folder / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((240, 180)).save(file)
