"""What a run sends to a tracking library (loggers/). One that fails is dropped and said once; the run goes on the same."""

import contextlib
import importlib
import json
import textwrap
from collections.abc import Iterator
from typing import Any

from ptmrun.config import parsing, schema, specs
from ptmrun.config.schema import Config
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run


def library(name: str) -> Any:
    """The module of loggers/ for `logger=<name>`, None for none. Raises UserError when what it imports is not installed."""
    module = specs.spec("logger", name).module
    if module is None:
        return None
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"logger={name}: {error}; install it with: pip install 'ptmrun[{name}]'") from None


def start(run: Run, cfg: Config) -> None:
    """Gives the run a tracker when the config asks for one."""
    if module := library(cfg.logger.name):
        run.tracker = Tracker(run, cfg, module)


class Tracker:
    """Hands the lines of metrics.jsonl, and at the end figures and scores, to the logger of the config."""

    def __init__(self, run: Run, cfg: Config, module: Any):
        self.run = run
        self.name = cfg.logger.name
        self.sent = {key(line) for line in run.metrics()}  # by the process that was interrupted: not twice
        self.logger: Any = None
        with self.guarded():
            self.logger = module.Logger(run, cfg)
            run.say(f"Tracked, to look at with: {self.logger.look}")

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Drops the logger when what is inside fails, whatever a library raises."""
        try:
            yield
        except Exception as error:
            self.logger = None
            with contextlib.suppress(OSError):  # a full disk: the run itself will say so
                reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
                self.run.say(f"logger={self.name} failed and is dropped, the run goes on without it: {reason}")

    def metric(self, line: dict[str, Any]) -> None:
        """Sends the numbers of a line of metrics.jsonl as <stage>/<trial>/<name>."""
        if self.logger and key(line) not in self.sent:
            prefix = "/".join(line[k] for k in ("stage", "trial") if k in line)
            values = {k: v for k, v in line.items() if isinstance(v, int | float) and k not in ("step", "time")}
            with self.guarded():
                self.logger.metrics(prefix, values, line["step"], line["time"])

    def close(self) -> None:
        """Sends the figures, the scores and the status of the manifest."""
        with self.guarded():
            if self.logger:
                for path in sorted(self.run.path("figures").glob("*.png")):
                    self.logger.figure(path.stem, path)
                self.logger.close(self.run.manifest["status"], scores(self.run))


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a line of metrics.jsonl from the others: a resumed run writes some again."""
    return line.get("stage"), line.get("trial"), line.get("step"), *sorted(line)


def scores(run: Run) -> dict[str, float]:
    """The score, its spread and the baselines of results.json; nothing when the run did not evaluate."""
    results = run.results()
    if results is None:
        return {}
    summary = {name: results[name] for name in ("score", "score_sd") if results[name] is not None}
    return summary | {f"baselines/{name}": value for name, value in results["baselines"].items()}


def params(cfg: Config) -> dict[str, bool | int | float | str]:
    """The settings as {dotted key: plain value}; lists and null as JSON text."""
    settings = schema.flat(parsing.plain(cfg))
    return {key: value if isinstance(value, bool | int | float | str) else json.dumps(value) for key, value in settings.items()}
