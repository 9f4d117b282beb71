"""Who may not know what: read from the imports."""

import ast
import re
from pathlib import Path

import pytest

import ptmrun
from ptmrun.config import schema as config

PACKAGE = Path(ptmrun.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HYDRA = {"compose.py", "sweeps/sweep.py"}
HEAVY = {"torch", "transformers", "torchvision", "datasets"}


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports, as dotted names; with `top_level` only what runs at import time."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def knows(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) for m in modules if name == m or name.startswith(f"{m}.")}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    name = str(path.relative_to(PACKAGE))
    if name not in HYDRA:
        assert not knows(path, "hydra", "omegaconf")
    if name in ("cli.py", "compose.py", "commands/table.py", "config/schema.py", "errors.py", "__init__.py", "__main__.py"):
        assert not {m.split(".")[0] for m in imports(path, top_level=True)} & HEAVY
    if name.startswith("models/"):
        assert not knows(path, "ptmrun.objectives", "ptmrun.data", "ptmrun.stages")
    if name.startswith("objectives/"):
        assert not knows(path, "ptmrun.data", "ptmrun.training", "ptmrun.runs", "ptmrun.storage")
        own = {f"ptmrun.objectives.{p.stem}" for p in (PACKAGE / "objectives").glob("*.py") if "class Objective" in p.read_text()}
        assert not {m for m in own if m.split(".")[-1] != path.stem and knows(path, m)}
    if name.startswith("loggers/"):
        assert not knows(path, *(f"ptmrun.{m}" for m in ("stages", "training", "models", "objectives", "data")))
    if name.startswith("data/"):
        assert not knows(path, "ptmrun.models", "ptmrun.objectives")


def test_the_loop_names_nobody():
    """training/loop.py knows no model, objective, data set or stage, neither by import nor by name."""
    path = PACKAGE / "training" / "loop.py"
    assert not knows(
        path, "ptmrun.models", "ptmrun.objectives", "ptmrun.data", "ptmrun.stages", "ptmrun.downstream", "transformers"
    )
    names = {n for group in ("model", "task", "dataset", "downstream") for n in config.choices(group)}
    names |= {n for group in ("model", "task") for n in (config.spec(group, c).module for c in config.choices(group))}
    words = set(re.findall(r"[a-z0-9_]+", path.read_text().lower()))
    assert not names & words


def test_no_code_from_config():
    for path in FILES:
        text = path.read_text()
        assert not re.search(
            r"hydra\.utils|_target_|trust_remote_code *= *True|weights_only *= *False|import pickle|pickle\.|yaml\.load\(", text
        ), path


def test_yaml_and_modules_agree():
    """The folder is the list: every YAML names a module that exists."""
    for group, folder in (("model", "models"), ("task", "objectives"), ("downstream", "downstream"), ("dataset", "data/sources")):
        for name in config.choices(group):
            assert (PACKAGE / folder / f"{config.spec(group, name).module}.py").exists(), (group, name)
