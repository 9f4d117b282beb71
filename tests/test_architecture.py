"""Who may not know what: read from all imports, relative ones and those inside of functions too."""

import ast
import re
from pathlib import Path

import mutants
import pytest

import ptmrun
from ptmrun.config import choices, specs

PACKAGE = Path(ptmrun.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = [  # a package imports from those below it, and on its own floor from itself alone
    {"__main__"},
    {"cli", "api"},
    {"commands"},
    {"benchmarks"},
    {"sweeps"},
    {"exports"},
    {"stages"},
    {"objectives", "finetuning", "reports"},
    {"downstream", "training", "loggers", "compose"},
    {"models", "data", "runs"},
    {"config"},
    {"storage", "log_mel"},
    {"errors", "rng", "loss", "batch"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
HYDRA = {"config/grammar.py", "compose.py", "sweeps/sweep.py", "sweeps/search.py"}
HEAVY = {"torch", "transformers", "torchvision", "datasets"}
LIGHT = ("cli.py", "compose.py", "errors.py", "commands/table.py", "commands/check.py", "commands/resume.py", "config/")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def imports(path: Path, top_level: bool = False) -> set[str]:
    """Modules that a file imports, as dotted names; with `top_level` only what runs at import time."""
    tree = ast.parse(path.read_text())
    here = ["ptmrun", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")] if node.level else [node.module or ""]
            base = ".".join(part for part in parts if part)
            found |= {base} | {f"{base}.{a.name}" for a in node.names}
    return found


def rooms(path: Path) -> set[str]:
    """The packages of this project that a file imports from."""
    return {m.split(".")[1] for m in imports(path) if m.startswith("ptmrun.") and m.split(".")[1] in FLOOR}


def knows(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) for m in modules if name == m or name.startswith(f"{m}.")}


def test_imports_of_every_kind_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_architecture.PACKAGE", tmp_path)
    file = tmp_path / "models" / "bert.py"
    file.parent.mkdir()
    file.write_text("from ..data import text\nfrom . import vit\n\n\ndef f():\n    from ptmrun.stages import run\n")
    assert {"ptmrun.data.text", "ptmrun.models.vit", "ptmrun.stages.run"} <= imports(file)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_package_imports_only_from_those_below_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        assert rooms(path) <= ({"api"} if path.parent == PACKAGE else set())  # ptmrun.load
        assert not imports(path, top_level=True) & {"ptmrun.api"}
        return
    above = {room for room in rooms(path) if room != own and FLOOR[room] <= FLOOR[own]}
    assert own in FLOOR
    assert not above, f"{name_of(path)} knows {above}"


def test_there_is_no_circle():
    """Among files: none is imported, however indirectly, by what it imports at import time."""
    modules = {"ptmrun." + name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", "."): p for p in FILES}
    arrows = {
        m: {i for i in imports(p, top_level=True) if i in modules and not f"{m}.".startswith(f"{i}.")}  # not its own package
        for m, p in modules.items()
    }
    state: dict[str, int] = {}

    def walk(module: str, way: list[str]) -> None:
        state[module] = 1
        for other in arrows[module]:
            assert state.get(other) != 1, [*way, module, other]
            if other not in state:
                walk(other, [*way, module])
        state[module] = 2

    for module in arrows:
        if module not in state:
            walk(module, [])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports(path):
    name = name_of(path)
    if name not in HYDRA:
        assert not knows(path, "hydra", "omegaconf")
    if name.startswith(LIGHT):
        assert not {m.split(".")[0] for m in imports(path, top_level=True)} & HEAVY
    if name.startswith("models/"):
        assert not knows(path, "ptmrun.data", "ptmrun.runs")
    if name.startswith("data/"):
        assert not knows(path, "ptmrun.models", "ptmrun.runs")
    if name.startswith("objectives/"):
        assert not knows(path, "ptmrun.data", "ptmrun.training", "ptmrun.runs", "ptmrun.storage")
        own = {f"ptmrun.objectives.{p.stem}" for p in (PACKAGE / "objectives").glob("*.py") if "class Objective" in p.read_text()}
        assert not {m for m in own - {"ptmrun.objectives.base"} if m.split(".")[-1] != path.stem and knows(path, m)}
    if name.startswith("finetuning/"):
        assert not knows(path, "ptmrun.data", "ptmrun.objectives", "ptmrun.runs")
    if name.startswith("downstream/"):
        assert not knows(path, "ptmrun.runs", "ptmrun.training")
    if name.startswith("loggers/"):
        assert not knows(path, "ptmrun.models", "ptmrun.data")


def test_the_loop_names_nobody():
    """training/loop.py knows no model, objective, data set or stage, neither by import nor by name."""
    path = PACKAGE / "training" / "loop.py"
    assert not knows(path, "ptmrun.models", "ptmrun.data", "transformers")
    names = {n for group in ("model", "task", "dataset", "downstream") for n in choices.names(group)}
    words = set(re.findall(r"[a-z0-9_]+", path.read_text().lower()))
    assert not names & words - {"clip"}  # which is a setting of the loop too, the largest norm of gradients


def test_stages_know_no_kind_of_data():
    """By name: what depends on the kind of data stands in data/."""
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not re.search(r'noun == |"images"|"texts?"', path.read_text()), path


def test_no_code_from_config():
    for path in FILES:
        text = path.read_text()
        assert not re.search(
            r"hydra\.utils|_target_|trust_remote_code *= *True|weights_only *= *False|import pickle|pickle\.|yaml\.load\(", text
        ), path


@pytest.mark.parametrize("mutant", mutants.MUTANTS)
def test_every_fault_has_its_place(mutant):
    """Each text that tests/mutants.py replaces stands once, and the tests that are to notice exist."""
    assert (PACKAGE / mutant.file).read_text().count(mutant.old) == 1
    for name in mutant.tests.split():
        file, _, test = name.partition("::")
        assert f"def {test.partition('[')[0]}(" in (PACKAGE.parent / "tests" / f"test_{file}.py").read_text(), name


def test_yaml_and_modules_agree():
    """The folder is the list: every YAML names a module that exists."""
    for group in ("model", "task", "downstream", "dataset"):
        for name in choices.names(group):
            file = PACKAGE.parent / specs.spec(group, name).module.replace(".", "/")
            assert file.with_suffix(".py").exists() or (file / "__init__.py").exists(), (group, name)
