"""Lightning's Trainer against ptmrun's loop: the same objective, batches, optimizer, clipping and schedule."""

import logging
import time
import warnings
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ptmrun.benchmarks import MISSING, loop
from ptmrun.benchmarks.clock import as_installed, in_turns
from ptmrun.benchmarks.row import Row
from ptmrun.benchmarks.setting import Setting, default_precision, setting
from ptmrun.training import optim
from ptmrun.training.schedule import lr_at


def rows(pairs: int, folder: Path) -> Iterator[Row]:
    if not find_spec("lightning"):
        yield Row("lightning", "Lightning's Trainer / the loop", reason=MISSING)
        return
    precision = default_precision()
    for task in ("mim", "clm"):
        one = setting(loop.TASKS[task], precision)
        values = in_turns(partial(train, one, folder), partial(one.fit, folder), pairs)
        yield Row("lightning", f"{task}: Lightning's Trainer / the loop ({precision})", "CPU s", values, least=1.0)


def train(one: Setting, folder: Path) -> float:
    """CPU seconds of Trainer.fit."""
    import lightning

    settings = one.cfg.pretrain

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.objective = one.objective

        def training_step(self, micros: list[dict[str, Any]], number: int) -> torch.Tensor:
            loss, _ = self.objective(micros[0])
            return loss.total / loss.n

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = optim.build(optim.groups(self.objective, settings, lambda name: 0, 0), settings)
            rate = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: lr_at(min(step, settings.steps - 1), settings.steps, settings) / settings.lr
            )
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

        def transfer_batch_to_device(self, batch: Any, device: torch.device, number: int) -> Any:
            return batch  # is there already

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with as_installed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning about what it is not given
        begun = time.process_time()
        trainer = lightning.Trainer(
            accelerator="cpu",
            precision="bf16-mixed" if one.precision == "bf16" else "32-true",
            max_steps=settings.steps,
            gradient_clip_val=settings.clip,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Module(), one.batches.iterate(0, settings.steps))
        return time.process_time() - begun
