"""README and docs: every command in them is one that ptmrun takes, links lead somewhere, and the reference is made."""

import copy
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ptmrun import cli
from ptmrun.commands import table
from ptmrun.compose import compose
from ptmrun.config import choices, grammar, keys
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "zh").glob("*.md")])
OPEN = re.compile(r"\.\.\.|\b(KEY|VALUE|VERB|WORD|EXPERIMENT|GROUP|key=value)\b|FOLDER\]")  # a form, not a command
OWN = {"dataset=photos": "dataset=imagefolder", "experiment=my_study": None, "model=conv1d": None}  # choices that a page makes


def commands(page: Path) -> list[str]:
    """What a page shows to be typed: lines of indented or fenced blocks, and code within the text."""
    text = page.read_text(encoding="utf-8")
    blocks = [line.strip().rpartition("| ")[2] for line in text.splitlines() if re.match(r"(    )+([\w ./]+\| )?ptmrun\b", line)]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`(ptmrun [^`]+)`", re.sub(r"(?m)^    .*$", "", text))]
    return list(dict.fromkeys([*blocks, *inline]))


@pytest.fixture
def quick(monkeypatch):
    """Hydra composes each combination of choices once; values are put in as Hydra's parser reads them."""

    def compose_raw(overrides: list[str], keep: str = "") -> dict:
        values = [o for o in grammar.parsed(overrides) if o.key_or_group not in choices.GROUPS]
        raw = copy.deepcopy(grammar.composed_choices(*(o for o in overrides if o.split("=")[0] in choices.GROUPS)))
        for override in values:
            *parents, last = override.key_or_group.split(".")
            where = raw
            for part in parents:
                where = where[part]
            where[last] = override.value()
        return raw

    monkeypatch.setattr("ptmrun.compose.compose_raw", compose_raw)


def settings_of_run(words: list[str], sweep: bool) -> list[str]:
    """The overrides of a run; of a sweep those of its first job."""
    words = [w for w in (OWN.get(word, word) for word in words) if w]
    _, _, mistakes = grammar.sort_overrides(words, sweep=sweep)
    assert not mistakes
    result = []
    for word, override in zip(words, grammar.parsed(words), strict=True):
        if override.key_or_group.split(".")[0].split("/")[0] in ("hydra", "sweep"):
            continue
        if not override.is_sweep_override():
            result.append(word)
        elif not override.is_interval_sweep():
            result.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
    return result


def check(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)[1:]
    if "--config-dir" in words:
        place = words.index("--config-dir")
        words = words[:place] + words[place + 2 :]
    named = len(words) == 1 and words[0] in table.VERBS  # in a sentence
    if not words or named or OPEN.search(command) or words[0] in ("--help", "-sc"):
        assert not words or words[0].startswith("-") or words[0] in table.VERBS or "=" in words[0]
        return
    if words[0] in table.VERBS:
        calls = []
        module = SimpleNamespace(command=lambda call: calls.append(call) or 0)
        with monkeypatch.context() as patch:
            patch.setattr(Run, "open", lambda folder: SimpleNamespace(folder=folder))
            patch.setattr(importlib, "import_module", lambda _: module)
            assert cli.verb(words[0], words[1:]) == 0
        if words[0] in ("check", "resume", "reproduce"):
            compose(settings_of_run(calls[0].settings, sweep=False))
        return
    sweep = words[0] == "-m"
    words = [word for word in words if word not in ("-m", "--cfg", "job")]
    assert all("=" in word for word in words)
    if any(word.startswith(("init=outputs/", "init=RUN")) for word in words):  # whose data and model are that run's
        groups, values, mistakes = grammar.sort_overrides(words, sweep)
        known = grammar.composed_choices(*(f"{group}={choice}" for group, choice in groups.items()))
        assert not mistakes
        assert not [key for key in values if grammar.unknown(key, known)]
        return
    compose(settings_of_run(words, sweep))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one(page, quick, monkeypatch):
    wrong = []
    for command in commands(page):
        try:
            check(command, monkeypatch)
        except (Exception, SystemExit) as error:
            wrong.append(f"{command}: {type(error).__name__} {error}")
    assert not wrong, "\n".join(wrong)


def test_a_command_that_is_none_is_seen(quick, monkeypatch):
    typed = ("model=vti", "predict RUN", "pretrain.steps=-1", "-m task=mim,maee", "list --treee", "check task=maee")
    for command in (f"ptmrun {words}" for words in typed):
        with pytest.raises((UserError, AssertionError)):
            check(command, monkeypatch)


def test_commands_are_found():
    there = commands(ROOT / "docs" / "first-run.md")
    assert "ptmrun help vit            # one choice and its keys" in there
    assert "ptmrun model=vit task=mim" in [command.split("#")[0].strip() for command in there]
    assert sum(len(commands(page)) for page in PAGES) > 80
    assert any(command.startswith("ptmrun predict RUN - --json") for command in commands(ROOT / "docs" / "predict.md"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "reference"
    runpy.run_path(str(ROOT / "docs" / "generate.py"))["main"](folder)
    return folder


def test_the_reference_has_every_choice_and_key(reference):
    for group in choices.GROUPS:
        index = (reference / f"{group}.md").read_text()
        for name in choices.names(group):
            page = (reference / group / f"{name}.md").read_text()
            assert f"({group}/{name}.md)" in index
            assert all(f"| `{key.name}` |" in page for key in keys.own(group, name))
    page = (reference / "keys.md").read_text()
    assert all(f"| `{key.name}` |" in page for key in keys.common())
    assert all(f"\n## {verb}\n" in (reference / "verbs.md").read_text() for verb in table.VERBS)
    assert "arxiv.org/abs/2002.05709" in (reference / "task" / "simclr.md").read_text()


def test_links_lead_somewhere(reference):
    lost = []
    for page in [*PAGES, *reference.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            made = reference in page.parents
            folder = ROOT / "docs" / "reference" / page.parent.relative_to(reference) if made else page.parent
            place = os.path.relpath(folder / target, ROOT / "docs")
            there = reference.parent / place if place.startswith("reference/") else ROOT / "docs" / place
            lost += [] if there.exists() else [f"{page.name}: {target}"]
    assert not lost


def test_a_fact_stands_on_one_page():
    """What stands on two is changed on one of them only."""
    pages: dict[str, set[str]] = {}
    for page in (ROOT / "docs").glob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            pages.setdefault(line, set()).add(page.name)
    assert not [line for line, places in pages.items() if len(line) > 90 and len(places) > 1]


def test_code_in_a_table_has_no_backslash():
    """GitHub wants one before a bar in a table, other generators print it."""
    assert not [page.name for page in PAGES if re.search(r"`[^`\n]*\\\|[^`\n]*`", page.read_text(encoding="utf-8"))]


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 64
    assert (ROOT / "docs" / "images" / "default-run.png").stat().st_size < 100_000


def test_the_site_builds_without_warnings(reference, tmp_path):
    pytest.importorskip("mkdocs")
    docs = tmp_path / "docs"
    subprocess.run(["cp", "-r", ROOT / "docs", docs], check=True)
    subprocess.run(["cp", "-r", reference, docs], check=True)
    (tmp_path / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
