"""Weights & Biases: metrics, config and figures; no code, git state, console output or system metrics."""

import os
import secrets
from pathlib import Path
from typing import Any

import wandb

from ptmrun.config import parsing
from ptmrun.config.schema import Config
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run

os.environ["WANDB_ERROR_REPORTING"] = "false"  # telemetry; read when the library starts its service


class Logger:
    def __init__(self, run: Run, cfg: Config):
        options: Any = cfg.logger
        offline = options.mode == "offline"
        folder = run.path("tracking")
        folder.mkdir(exist_ok=True)
        if not offline and not wandb.login(prompt=False):
            raise UserError("not logged in; type wandb login first, or set WANDB_API_KEY")
        if "tracking_id" not in run.manifest:
            run.update(tracking_id=secrets.token_hex(8))
        self.stepped: set[str] = set()
        self.run = wandb.init(
            project=options.project,
            name=run.folder.resolve().name,
            id=run.manifest["tracking_id"],
            resume=None if offline else "allow",  # `wandb sync` puts offline files of one id together
            mode=options.mode,
            dir=folder,
            config=parsing.plain(cfg),
            reinit="create_new",  # never one that an earlier run of this process left behind
            settings=wandb.Settings(
                silent=True,
                console="off",
                host="",
                save_code=False,
                disable_code=True,
                disable_git=True,
                symlink=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=1.0,  # seconds of metrics that kill -9 may cost
                init_timeout=30,
                finish_timeout=60,
            ),
        )
        for link in folder.glob("wandb/*/logs/debug-core.log"):
            link.unlink()  # it leads out of the run folder, to the user's cache
        self.look = f"wandb sync {folder}/wandb/offline-run-*" if offline else self.run.url

    def metrics(self, prefix: str, values: dict[str, float], step: int, time: float) -> None:
        if prefix not in self.stepped:  # every stage and trial counts its own steps
            self.stepped.add(prefix)
            self.run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        self.run.log({f"{prefix}/{name}": value for name, value in {"step": step, **values}.items()})

    def figure(self, name: str, path: Path) -> None:
        self.run.log({f"figures/{name}": wandb.Image(str(path))})

    def close(self, status: str, scores: dict[str, float]) -> None:
        self.run.summary.update({"status": status, **scores})
        self.run.finish(exit_code=0 if status == "done" else 1)
