"""TensorBoard: event files in <run>/tracking; `tensorboard --logdir outputs` shows all runs."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ptmrun.config import parsing
from ptmrun.config.schema import Config
from ptmrun.loggers.tracker import params
from ptmrun.runs.folder import Run


class Logger:
    def __init__(self, run: Run, cfg: Config):
        self.params = params(cfg)
        self.look = f"tensorboard --logdir {cfg.outputs}"
        self.writer = SummaryWriter(str(run.path("tracking")))
        self.writer.add_text("config", f"```yaml\n{parsing.dump(cfg)}```")

    def metrics(self, prefix: str, values: dict[str, float], step: int, time: float) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{prefix}/{name}", value, step, walltime=time)
        self.writer.flush()  # a killed run keeps its curves

    def figure(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self.writer.add_image(f"figures/{name}", np.array(image.convert("RGB")), dataformats="HWC")

    def close(self, status: str, scores: dict[str, float]) -> None:
        self.writer.add_text("status", status)
        if status == "done":  # once: TensorBoard keeps the first table of hyper-parameters that it finds
            self.writer.add_hparams(self.params, scores, run_name=".")
        self.writer.close()
