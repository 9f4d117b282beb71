"""MLflow: by default a SQLite store beside the run folders, so that runs can be compared."""

import fcntl
import os
from pathlib import Path
from time import time as now
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from ptmrun.config.schema import Config
from ptmrun.loggers.tracker import params
from ptmrun.runs.folder import Run

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # training does not wait minutes for a server that is away


os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
MOST = 100  # parameters that the store takes at once


class Logger:
    def __init__(self, run: Run, cfg: Config):
        options: Any = cfg.logger
        folder = run.folder.resolve()
        uri = options.uri or f"sqlite:///{folder.parent}/mlflow.db"
        self.look = f"mlflow ui --backend-store-uri {uri} (which needs the whole mlflow package)"
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).touch()  # fails at once, where the library tries again for minutes
        with open(folder.parent / ".mlflow.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of runs that begin together, one makes the tables
            self.client = MlflowClient(uri)
            files = None if uri.startswith("http") else f"{folder.parent}/mlruns"  # a server has a place of its own
            experiment = experiment_id(self.client, options.experiment, files)
        if "tracking_id" in run.manifest:
            self.id = run.manifest["tracking_id"]
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(experiment, tags={"folder": str(folder)}, run_name=folder.name).info.run_id
        run.update(tracking_id=self.id)
        settings = [Param(k, str(v)) for k, v in params(cfg).items()]
        for start in range(0, len(settings), MOST):
            self.client.log_batch(self.id, params=settings[start : start + MOST])

    def metrics(self, prefix: str, values: dict[str, float], step: int, time: float) -> None:
        self.send({f"{prefix}/{name}": value for name, value in values.items()}, step, time)

    def send(self, values: dict[str, float], step: int, time: float) -> None:
        self.client.log_batch(self.id, [Metric(name, value, round(1000 * time), step) for name, value in values.items()])

    def figure(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.id, str(path), "figures")

    def close(self, status: str, scores: dict[str, float]) -> None:
        self.send(scores, 0, now())
        self.client.set_terminated(self.id, STATUS[status])


def experiment_id(client: MlflowClient, name: str, files: str | None) -> str:
    """Of the experiment with this name, made when it is not there; `files` is where its figures go."""
    try:
        return client.create_experiment(name, artifact_location=files)
    except MlflowException:
        return client.get_experiment_by_name(name).experiment_id
