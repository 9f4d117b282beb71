"""The part of `make bench` (bench.py) on text: the language reference that comes with Python, in ptmrun's own tokens."""

from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import bench_trainer
import numpy as np
from bench_loops import CPU, compare_steps, end_to_end
from torch import nn

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.data.text import load as texts
from ptmrun.stages.networks import family_of, module_of, problem_of
from ptmrun.training import device

STEPS, DRAWS = 20, 4  # draws of the hidden tokens of held-out sequences
TASKS = {"mlm": "bert", "clm": "gpt"}


def load(cfg: Any) -> texts.Texts:
    downstream = problem_of(cfg)
    return texts.load(module_of(cfg, "dataset").read, cfg, family_of(cfg), downstream, None, lambda *_: None)


def setting(task: str, steps: int, precision: str, seed: int = 0) -> tuple:
    """(objective, batches, config) of `ptmrun model=... stage=pretrain`."""
    cfg = compose([f"model={TASKS[task]}", "stage=pretrain", f"pretrain.steps={steps}"])
    data, family, loop = load(cfg), family_of(cfg), cfg.pretrain
    changes, _ = family.resolve(cfg.model, data.processor(CPU).spec)
    rng.seed_everything(seed, "bench")
    encoder = family.build(cfg.model.model_copy(update=changes), data.processor(CPU).spec, device.attention(CPU, precision))
    objective = module_of(cfg, "task").Objective(encoder, cfg.task)
    batches = data.batches(objective, data.train, cfg, loop, loop.batch_size, seed, "bench", data.inputs(CPU))
    return objective, batches, cfg


def documents(cfg: Any, corpus: Any) -> list[str]:
    """The texts of the documents of a corpus."""
    whole = module_of(cfg, "dataset").read(cfg.dataset).parts["train"].documents()
    theirs = np.isin(corpus.documents[:-1], corpus.spans[:, 0])
    return list(compress(whole, theirs))


def against_trainer(task: str, steps: int, folder: Path) -> None:
    _, batches, cfg = setting(task, steps, "fp32")
    blocks = batches.split.blocks
    tokenizer = blocks.corpus.tokenizer.fast
    sequences = bench_trainer.sequences_of(documents(cfg, blocks.corpus), tokenizer, blocks.length, masked=task == "mlm")
    [held] = load(cfg).val_corpus.all(1000)
    count = len(held.ids)
    held_out = [
        {"inputs": held, "rows": rng.BatchRandom(0, step, 0, count, count)} for step in range(DRAWS if task == "mlm" else 1)
    ]

    def peer(objective: Any, cfg: Any, seed: int) -> tuple[float, nn.Module]:
        return bench_trainer.on_texts(objective, sequences, tokenizer, cfg.pretrain, folder, seed)

    def losses(objective: Any, model: nn.Module) -> tuple[float, float]:
        mine = [objective(batch)[0] for batch in held_out]
        theirs = [bench_trainer.text_loss(model, objective, batch) for batch in held_out]
        return tuple(float(sum(x.total for x in side) / sum(x.n for x in side)) for side in (mine, theirs))

    end_to_end(f"{task}, {blocks.length} tokens", "sequences", partial(setting, task, steps), peer, losses, 3, folder)


def main(folder: Path) -> None:
    for task in TASKS:
        compare_steps(task, partial(setting, task, STEPS), folder)
    for task, steps in (("mlm", 100), ("clm", 200)):
        against_trainer(task, steps, folder)
