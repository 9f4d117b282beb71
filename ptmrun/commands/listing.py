"""`ptmrun list`: the runs of a folder and of its sweeps, as a table or as a tree from pretraining to the evaluated number."""

import datetime
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from ptmrun.commands.table import Call
from ptmrun.config import parsing
from ptmrun.errors import UserError, nearest
from ptmrun.runs import config_file
from ptmrun.runs.console import console, print_json
from ptmrun.runs.folder import Run, locked
from ptmrun.storage.files import size_of

SORT = ("name", "status", "score", "age", "size")


@dataclass
class Entry:
    """A run in the list."""

    name: str
    status: str
    score: float | None
    metric: str
    age: float  # seconds since it was started
    size: int  # bytes
    manifest: dict[str, Any]
    run: Run | None = None

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Read when something asks for them; empty where they cannot be read."""
        if self.run is None:
            return {}
        try:
            return parsing.plain(config_file.load(self.run.sound("config.yaml")))
        except UserError:
            return {}


def folders(root: Path) -> Iterator[Path]:
    """Run folders in `root` and in the sweeps there (links, such as `latest`, are not followed)."""
    for pattern in ("*/manifest.json", "*/*/*/manifest.json"):
        for path in sorted(root.glob(pattern)):
            if not any(p.is_symlink() for p in (path.parent, path.parent.parent)):
                yield path.parent


def entry(root: Path, folder: Path) -> Entry:
    """What the list shows of a run; of one that cannot be read, that."""
    name, size = str(folder.relative_to(root)), size_of(folder)
    try:
        run = Run.open(folder)
        config = run.sound("config.yaml")
        if config.name not in run.manifest.get("sha256", {}):  # else it is as ptmrun wrote it
            config_file.load(config)
        score, _, metric = run.score()
        status = "killed" if run.manifest["status"] == "running" and not locked(run) else run.manifest["status"]
    except UserError as error:
        return Entry(name, f"broken: {error.args[0]}", None, "", 0.0, size, {})
    except Exception as error:  # whatever a hostile one makes of itself, the others are listed
        return Entry(name, f"broken: {type(error).__name__}: {error}"[:200], None, "", 0.0, size, {})
    try:
        started = datetime.datetime.fromisoformat(run.manifest.get("started", ""))
        age = (datetime.datetime.now(datetime.UTC) - started).total_seconds()
    except (TypeError, ValueError, ArithmeticError):
        age = 0.0
    return Entry(name, status, score, metric, age, size, run.manifest, run)


def listed(root: Path, filters: dict[str, str], sort: str) -> list[Entry]:
    """The runs that the filters let through (status, a group, or a dotted config key), sorted."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if sort not in SORT:
        raise UserError(f"sort={sort}: expected one of {', '.join(SORT)}")
    entries = [entry(root, folder) for folder in folders(root)]
    for key, wanted in filters.items():
        values = {id(e): e.status if key == "status" else setting(e.settings, key) for e in entries}
        if entries and all(v is None for v in values.values()):
            raise UserError(f"{key}: no run in {root} has such a key{nearest(key, ['status', *entries[0].settings])}")
        entries = [e for e in entries if str(values[id(e)]) == wanted]
    return sorted(entries, key=lambda e: (getattr(e, sort) is None, getattr(e, sort), e.name))


def setting(settings: dict[str, Any], key: str) -> Any:
    """The value of a dotted key; of a group, the name of its choice."""
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.get("name") if isinstance(value, dict) else value


def table(entries: list[Entry]) -> Table:
    made = Table()
    for title in ("run", "status", "score", "age", "size"):
        made.add_column(title, justify="right" if title in ("age", "size") else "left", overflow="fold")
    for e in entries:
        score = "" if e.score is None else f"{e.score:.3f} {e.metric}"
        cells = e.name, e.status, score, ago(e.age), f"{e.size / 1e6:.1f} MB"
        made.add_row(*(escape(cell) for cell in cells))
    return made


def tree(entries: list[Entry], root: Path) -> Tree:
    """Each run below the one that its weights come from."""
    made = Tree(escape(str(root)))
    names = {Path(e.name).name: e for e in entries}
    children: dict[str | None, list[Entry]] = {}
    for e in entries:
        parents = [p.get("run") for p in e.manifest.get("parents", [])] + list(e.manifest.get("reused", {}).values())
        children.setdefault(next((p for p in parents if p in names and names[p] is not e), None), []).append(e)

    def grow(branch: Tree, name: str | None, above: tuple[str, ...]) -> None:
        for e in children.get(name, []):
            own = Path(e.name).name
            if own not in above:  # a circle can only be a forgery
                stage = e.settings.get("stage", "")
                stage = "pretrain -> finetune -> evaluate" if stage == "all" else stage
                weights = str(e.manifest.get("weights_sha256") or "")[:8]
                score = "" if e.score is None else f", {e.metric} {e.score:.3f}"
                line = f"{e.name}: {stage}, {e.status}{score}{', weights ' + weights if weights else ''}"
                grow(branch.add(escape(line)), own, (*above, own))

    grow(made, None, ())
    return made


def ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def show(root: Path, filters: dict[str, str], sort: str, as_tree: bool) -> None:
    """Prints the list."""
    entries = listed(root, filters, sort)
    if as_tree:
        console.print(tree(entries, root), crop=False, no_wrap=True, overflow="ignore")
    else:
        console.print(table(entries) if entries else escape(f"{root}: no runs"))


def document(root: Path, entries: list[Entry]) -> list[dict[str, Any]]:
    """The same for programs: of every run its folder, what the table shows, the runs it came from and its settings."""
    return [
        {
            "run": str(root / e.name),
            "status": e.status,
            "score": e.score,
            "metric": e.metric,
            "age_s": round(e.age),
            "bytes": e.size,
            "parents": [p.get("run") for p in e.manifest.get("parents", [])],
            "settings": e.settings,
        }
        for e in entries
    ]


def command(call: Call) -> int:
    filters = dict(s.split("=", 1) for s in call.settings)
    sort = filters.pop("sort", "name")
    if "--json" in call.flags:
        root = Path(call.names[0] if call.names else "outputs")
        print_json(document(root, listed(root, filters, sort)))
        return 0
    show(Path(call.names[0] if call.names else "outputs"), filters, sort, "--tree" in call.flags)
    return 0
