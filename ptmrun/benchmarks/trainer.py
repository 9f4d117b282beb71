"""transformers' Trainer, set up as its examples run_mim.py, run_mae.py, run_mlm.py and run_clm.py do, against ptmrun by defaults:
data included, from scratch, a seed a pair; and the loss of both on the same held-out samples with the same parts hidden.

Trainer computes in fp32, without loader processes, with its fused AdamW. What would make it slower or learn less for no good
reason is left out: images stay gray instead of becoming RGB, the mask of special tokens is kept for the collator, nothing is
saved, model sizes, tokens and the optimizer's settings are those of ptmrun's defaults.
"""

import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ptmrun.benchmarks import MISSING, transformers_images, transformers_texts
from ptmrun.benchmarks.clock import as_installed
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import Setting, default_precision, setting

PAIRS = 3  # at most
CASES = [  # name, what is typed, what is asked for
    ("simmim, 28 px", ["task=simmim", "dataset.image_size=28", "pretrain.steps=10"], 2.8),
    ("simmim, 64 px", ["task=simmim", "dataset.image_size=64", "pretrain.steps=5"], 2.5),
    ("mae, 28 px", ["task=mae", "dataset.image_size=28", "pretrain.steps=10"], 2.5),
    ("mae, 64 px", ["task=mae", "dataset.image_size=64", "pretrain.steps=5"], 2.2),
    ("mlm, 128 tokens", ["model=bert", "task=mlm", "pretrain.steps=25"], 2.6),
    ("clm, 128 tokens", ["model=gpt", "task=clm", "pretrain.steps=25"], 1.9),
]


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    if not find_spec("accelerate"):
        yield Row("trainer", "transformers' Trainer / ptmrun", reason=MISSING)
        return
    for name, words, goal in CASES:
        yield from case(name, words, goal, min(pairs, PAIRS), folder)


def case(name: str, words: list[str], goal: float, pairs: int, folder: Path) -> Iterator[Row]:
    precision, seconds, losses = default_precision(), [], []
    first = setting(words)
    side = transformers_images if first.data.noun == "images" else transformers_texts
    examples = side.examples(first)
    for seed in range(pairs):
        one = setting(words, precision, seed)
        mine = one.fit(folder) if seed % 2 else 0.0
        with as_installed():
            theirs, model = train(side, one, examples, folder, seed)
        seconds.append([theirs, mine or one.fit(folder)])
        one.objective.eval()
        with torch.no_grad():
            losses.append(side.losses(one, model.eval()))
    seen = first.cfg.pretrain.batch_size * first.cfg.pretrain.steps
    yield Row("trainer", f"{name}: Trainer / ptmrun ({precision})", "CPU s", seconds, least=goal)
    yield Row("trainer", f"{name}: ptmrun / Trainer after {seen:,} {first.data.noun}", "held-out loss", losses)


def train(side: ModuleType, one: Setting, examples: tuple[Any, Any], folder: Path, seed: int) -> tuple[float, nn.Module]:
    """(CPU seconds of Trainer.train, the trained model)."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    loop = one.cfg.pretrain
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        seed=seed,
        max_steps=loop.steps,
        per_device_train_batch_size=loop.batch_size,
        learning_rate=loop.lr,
        weight_decay=loop.weight_decay,
        adam_beta1=loop.beta1,
        adam_beta2=loop.beta2,
        max_grad_norm=loop.clip,
        lr_scheduler_type=loop.schedule,
        warmup_steps=round(loop.warmup * loop.steps),
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data, collate = examples
    torch.manual_seed(seed)
    trainer = Trainer(model=side.model(one.objective), args=settings, train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library about itself
        begun = time.process_time()
        trainer.train()
        return time.process_time() - begun, trainer.model
