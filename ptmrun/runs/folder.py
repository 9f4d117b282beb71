"""The run folder: made exclusively, every file replaced atomically, nothing read from outside of it, no pickle in it."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ptmrun.config import parsing, schema, secrets
from ptmrun.errors import UserError
from ptmrun.runs import records
from ptmrun.runs.console import console, shown
from ptmrun.storage import digests
from ptmrun.storage.files import lock, new_folder, remove, write_atomic
from ptmrun.storage.safe_read import SPOILT, from_json, lines, lines_from_end, opened, plain_json

DIGESTED = ("config.yaml", "overrides.yaml", "results.json", "samples.json", "predictions.parquet")  # files that are read again
LARGEST = 2**30  # bytes of one of them
STATUS = ("running", "done", "failed", "interrupted")


class Run:
    """A run folder that is there. `create` makes one, `open` reads one."""

    silent = False  # whether there is no live progress to be shown

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.manifest = manifest
        self.tracker: Any = None  # loggers.tracker.Tracker, when the config asks for one

    @property
    def typed(self) -> str:
        """The folder as it is typed in a shell."""
        return shlex.quote(str(self.folder))

    @classmethod
    def create(cls, cfg: schema.Config, overrides: list[str], manifest: dict[str, Any]) -> "Run":
        """A new folder `outputs/<time>_<name>`; a name that is taken gets a number, so no two runs share a folder."""
        root = Path(cfg.outputs)
        words = [cfg.model.name, cfg.task.name, cfg.dataset.name, *([] if cfg.stage == "all" else [cfg.stage.replace("+", "-")])]
        stem = f"{stamp()}_{cfg.name or '-'.join(words)}"
        try:
            folder = new_folder(root, stem)
            run = cls(folder, manifest)
            try:
                run.write("config.yaml", parsing.dump(cfg))
                run.write("overrides.yaml", yaml.safe_dump(overrides))
                run.update(status="running", started=now())
            except OSError:
                shutil.rmtree(folder)
                raise
        except OSError as error:
            raise UserError(f"outputs={cfg.outputs}: no run folder can be made there: {error.strerror}") from None
        link_latest(root, folder.name)
        return run

    def discard(self) -> None:
        """Takes the folder away, of a run that has not begun; `latest` is the one before it again."""
        root = self.folder.parent
        shutil.rmtree(self.folder)
        if others := sorted(path.parent.name for path in root.glob("*/manifest.json") if not path.parent.is_symlink()):
            link_latest(root, others[-1])
        else:
            remove(root / "latest")

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Raises UserError when `folder` is no run folder."""
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run folder")
        folder = folder.resolve()
        with contextlib.suppress(ValueError):  # short names in messages, wherever `latest` points
            folder = folder.relative_to(Path.cwd())
        run = cls(folder, {})
        for name in ("manifest.json", "config.yaml"):
            if not run.path(name).is_file():
                raise UserError(f"{folder}: not a run folder, or not a whole one: {name} is missing")
        manifest = plain_json(run.path("manifest.json"))
        if not isinstance(manifest, dict) or manifest.get("status") not in STATUS:
            raise UserError(f"{folder}/manifest.json: expected a status, one of {', '.join(STATUS)}")
        run.manifest = records.check(records.Manifest, manifest, f"{folder}/manifest.json")
        return run

    def path(self, *parts: str) -> Path:
        """A path in the folder. Raises UserError when it leads outside, by `..` or by a link, or is no file or folder."""
        path = self.folder.joinpath(*parts)
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder)):
            raise UserError(f"{path}: leads outside of the run folder; refused")
        if os.path.lexists(path) and (path.is_symlink() or not (path.is_file() or path.is_dir())):
            raise UserError(f"{path}: a link, a FIFO or a device; refused")
        return path

    def there(self) -> None:
        """Raises UserError when the folder is gone, so that none of the old name is made beside one that was renamed."""
        if not self.folder.is_dir():
            why = "gone: renamed or removed while ptmrun worked in it"
            raise UserError(f"{self.folder}: {why}; go on with: ptmrun resume <its new name>")

    def sound(self, name: str) -> Path:
        """The path of a file. Raises UserError when its content is not what was written there last."""
        path = self.path(name)
        known = self.manifest.get("sha256", {}).get(name)
        if known and path.exists() and (path.stat().st_size > LARGEST or digests.of_file(path) not in known):
            raise UserError(f"{path}: {SPOILT}")
        return path

    def write(self, name: str, data: bytes | str) -> Path:
        """Text is written without the environment's secrets (see secrets.py). The manifest has the digest of what is read again
        before it is written, beside that of what stood there: a crash between the two leaves one of them."""
        self.there()
        path, data = self.path(name), secrets.masked(data)
        if name in DIGESTED:
            digest = digests.of_bytes(data.encode() if isinstance(data, str) else data)
            known = self.manifest.get("sha256", {})
            if digest not in known.get(name, []):
                self.update(sha256={**known, name: [digest, *known.get(name, [])[:1]]})
        write_atomic(path, data)
        return path

    def write_json(self, name: str, data: Any) -> None:
        self.write(name, (json.dumps(secrets.masked(data), indent=2, allow_nan=False) + "\n").encode())

    def update(self, **entries: Any) -> None:
        """Sets entries of manifest.json."""
        self.manifest = {**self.manifest, **entries}
        self.write_json("manifest.json", self.manifest)

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the CPU seconds of what runs inside to the manifest's `cpu_s` of `name`, over all attempts; written with its next
        update."""
        begun = time.process_time()
        try:
            yield
        finally:
            self.spend(name, time.process_time() - begun)

    def spend(self, name: str, seconds: float) -> None:
        """Adds CPU seconds to the manifest's, see `clock`."""
        known = self.manifest.get("cpu_s", {})
        self.manifest = {**self.manifest, "cpu_s": {**known, name: round(known.get(name, 0.0) + seconds, 1)}}

    def replace_recoveries(self, purpose: str, events: list[dict[str, Any]]) -> None:
        """Makes the manifest hold exactly these recoveries of a fit."""
        others = [e for e in self.manifest.get("recoveries", []) if e.get("purpose") != purpose]
        self.update(recoveries=[*others, *events])

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Held by the process that works on the run; a second one is refused."""
        return lock(self.path(".lock"), f"{self.folder}: another process is working on this run")

    def say(self, text: str) -> None:
        """A line for the terminal and for log.txt."""
        console.print(text, markup=False)
        self.note(text)

    def note(self, text: str) -> None:
        """A line, or several, for log.txt alone."""
        with open(self.path("log.txt"), "a", encoding="utf-8") as file:
            file.write(f"{now()} {shown(text)}\n")

    def metric(self, line: dict[str, Any]) -> None:
        """Appends to metrics.jsonl, one write a line, which a full disk leaves out as a whole; and tells the tracker."""
        path = self.path("metrics.jsonl")
        line = secrets.masked({**line, "time": round(time.time(), 3)})
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            if file.write(data) < len(data):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if self.tracker:
            self.tracker.metric(line)

    def cut_metrics(self, tags: dict[str, Any], step: int) -> None:
        """Drops the lines with these tags after a step: those that a killed process wrote after its last checkpoint. They stand
        among the last ones, of the same stage, so that nothing before these is read, however long the file is."""
        path = self.path("metrics.jsonl")
        if not path.exists():
            return
        left: list[bytes] = []  # lines of trainings beside it, the last one first
        with opened(path, "r+b") as file:
            try:
                whole = lines_from_end(file)
                cut, _ = next(whole)
                between: list[bytes] = []  # since the last line that goes
                for begin, line in whole:
                    entry = metrics_line(line, f"{path} at byte {begin}")
                    mine = not tags.items() - entry.items()
                    if entry["stage"] != tags["stage"] or (mine and entry["step"] <= step):
                        break
                    if mine:
                        cut, left = begin, left + between
                        between = []
                    else:
                        between.append(line)
            except ValueError as error:
                raise UserError(f"{path}: not JSON lines: {error}") from None
            if not left:
                file.truncate(cut)
                return
            file.seek(0)
            content = file.read(cut)
        write_atomic(path, content + b"".join(line + b"\n" for line in reversed(left)))

    def close_metrics(self) -> None:
        """Takes the digest of metrics.jsonl, to which nothing comes any more; written with the manifest's next update."""
        path = self.path("metrics.jsonl")
        if path.exists() and path.stat().st_size <= LARGEST:
            known = self.manifest.get("sha256", {})
            self.manifest = {**self.manifest, "sha256": {**known, path.name: [digests.of_file(path)]}}

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl, see `metric_lines`."""
        return list(self.metric_lines())

    def metric_lines(self, having: str = "") -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl, one after the other; a last line that a crash cut short is left out. `having`: only those
        with an entry whose name begins so, which are read much faster."""
        path, name = self.sound("metrics.jsonl"), f'"{having}'.encode()
        for number, line in lines(path) if path.exists() else ():
            if not having or name in line:
                entry = metrics_line(line, f"{path} line {number}")
                if not having or any(key.startswith(having) for key in entry):
                    yield entry

    def results(self) -> dict[str, Any] | None:
        """results.json, where there is one. Raises UserError when it is not what ptmrun writes."""
        path = self.sound("results.json")
        return records.check(records.Results, plain_json(path), str(path)) if path.exists() else None

    def samples(self) -> list[dict[str, Any]]:
        """What samples.json holds, oldest first; empty where there is none. Raises UserError for what ptmrun does not write."""
        path = self.sound("samples.json")
        return records.check(records.Samples, plain_json(path), str(path))["samples"] if path.exists() else []

    def drawn(self) -> dict[str, float]:
        """How the pretrained model's drawings were judged; {} where there are none."""
        lines = [line for line in self.metric_lines("split") if line["split"] == "drawn"]
        return {k: v for k, v in lines[-1].items() if k not in ("stage", "step", "split", "time")} if lines else {}

    def score(self) -> tuple[float | None, float | None, str]:
        """(score on the test split, on held-out training images, its name); of a pretraining alone, the last linear probe."""
        if results := self.results():
            return results["score"], results["val_score"], results["metric"]
        probes = [x["probe_linear"] for x in self.metric_lines("probe_linear")]
        return (probes[-1], probes[-1], "linear probe") if probes else (None, None, "")


def metrics_line(line: bytes, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises UserError for what ptmrun does not write."""
    try:
        return records.check_line(line) or records.check(records.Line, from_json(line), where)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {error}; expected JSON lines") from None


def stamp() -> str:
    """The local time, as folder names begin."""
    return f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def locked(run: Run) -> bool:
    """Whether some process works on a run."""
    try:
        with open(run.path(".lock")) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def link_latest(root: Path, name: str) -> None:
    """`latest` of a folder of runs leads to this one; a file system without links has none."""
    link = root / f".latest-{name}"
    with contextlib.suppress(OSError):
        remove(link)
        link.symlink_to(name)
        os.replace(link, root / "latest")
