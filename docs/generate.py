"""Writes docs/reference/: a page for each choice, all keys and all verbs, from the YAML files, the schema and the docstrings.

python docs/generate.py [FOLDER]
"""

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from ptmrun.commands import help, table
from ptmrun.config import choices, keys, parsing, specs

HERE = Path(__file__).parent
PACKAGE = choices.PACKAGE
TITLES = {
    "model": "Models",
    "task": "Objectives",
    "dataset": "Data sets",
    "downstream": "Labelled problems",
    "finetune": "Fine-tuning methods",
    "device": "Devices",
    "logger": "Trackers",
    "experiment": "Experiments",
}
ABOUT = {  # the page that a group's choices are explained on together
    "model": "models.md",
    "task": "objectives.md",
    "dataset": "data.md",
    "downstream": "texts.md",
    "finetune": "finetuning.md",
    "device": "keys.md",
    "logger": "tracking.md",
    "experiment": "resume.md",
}
SECTIONS = {"": "A run", "pretrain": "The loop of pretraining", "evaluate": "Evaluation", "sweep": "Sweeps (-m)"} | TITLES
ORDER = ("", "pretrain", "finetune", "evaluate", "dataset", "sweep")
NOTE = "This page is made by `docs/generate.py` from the settings and the code.\n"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys.md").write_text(all_keys(), encoding="utf-8")
    (folder / "verbs.md").write_text(verbs(), encoding="utf-8")
    for group in choices.GROUPS:
        (folder / f"{group}.md").write_text(group_page(group), encoding="utf-8")
        (folder / group).mkdir(exist_ok=True)
        for name in choices.names(group):
            (folder / group / f"{name}.md").write_text(choice_page(group, name), encoding="utf-8")


def all_keys() -> str:
    """The keys that do not depend on what is chosen, by section."""
    parts = ["# All keys", NOTE, "`ptmrun help KEY` shows one. A choice adds keys of its own, which stand on its page:"]
    parts.append("\n".join(f"- [{title}]({group}.md)" for group, title in TITLES.items()))
    for section in ORDER:
        those = [key for key in keys.common() if key.name.rpartition(".")[0].split(".")[0] == section]
        parts += [f"## {SECTIONS[section]}", key_table(those)]
    return "\n\n".join(parts) + "\n"


def verbs() -> str:
    parts = ["# Verbs", NOTE, "`ptmrun help VERB` shows one."]
    for name, verb in table.VERBS.items():
        own = known.model_fields.items() if (known := verb.own()) else ()
        settings = [f"`{key}={parsing.shown(field.default)}`" for key, field in own]
        lines = [f"## {name}", f"    ptmrun {verb.example}", f"`ptmrun {name} {verb.usage}`: {plain(verb.what)}."]
        named = [("Settings", settings), ("Options", [f"`{flag}`" for flag in verb.flags])]
        parts += [*lines, *(f"{title}: {', '.join(items)}." for title, items in named if items)]
    return "\n\n".join(parts) + "\n"


def group_page(group: str) -> str:
    rows = [(f"[`{group}={name}`]({group}/{name}.md)", plain(choices.summary(group, name))) for name in choices.names(group)]
    return (
        "\n\n".join([f"# {TITLES[group]}", NOTE, f"More about them: [here](../{ABOUT[group]}).", rows_of(("", ""), rows)]) + "\n"
    )


def choice_page(group: str, name: str) -> str:
    """What a choice is, the docstring of its code, its keys, what it sets and what it goes with."""
    parts = [f"# {group}={name}", f"{plain(choices.summary(group, name))}.", *filter(None, [command(group, name)])]
    parts += [linked(plain(docstring(group, name)))] if docstring(group, name) else []
    if own := keys.own(group, name):
        parts += ["## Keys", key_table(own)]
    if changed := keys.settings(group, name):
        text = "What it sets in other places; what is typed wins."
        rows = [(f"`{key}`", f"`{value}`" if value else "") for key, value in changed.items()]
        parts += ["## Sets", text, rows_of(("key", "value"), rows)]
    if fits := help.goes_with(group, name):
        rows = [(TITLES[other], ", ".join(f"[{x}](../{other}/{x}.md)" for x in names)) for other, names in fits.items()]
        parts += ["## Goes with", rows_of(("", ""), rows)]
    parts += [f"All choices: [{TITLES[group]}](../{group}.md). Keys that every run has: [All keys](../keys.md).", NOTE]
    return "\n\n".join(parts).rstrip("\n") + "\n"


def command(group: str, name: str) -> str:
    """A command that uses a choice with data that come along, where there are such."""
    if group in ("model", "experiment"):
        return f"    ptmrun {group}={name}"
    if group in ("task", "finetune"):
        models = help.goes_with(group, name)["model"]
        model = next((m for m in ("vit", "bert") if m in models), models[0])
        return f"    ptmrun model={model} {group}={name}"
    return ""


def docstring(group: str, name: str) -> str:
    """Of the module that does it; of a method of fine-tuning, of the function or the file of its name."""
    if group == "finetune":
        return method(name)
    module = specs.spec(group, name).module if group not in ("experiment", "device") else None
    if module is None:
        return ""
    package, *path = module.split(".")
    place = choices.packages()[package].joinpath(*path)
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def method(name: str) -> str:
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in sorted((PACKAGE / "finetuning").glob("*.py"))}
    if name in trees or f"{name}s" in trees:
        return ast.get_docstring(trees.get(name) or trees[f"{name}s"]) or ""
    wanted = "lora" if name == "dora" else name
    functions = [node for tree in trees.values() for node in tree.body if isinstance(node, ast.FunctionDef)]
    return next((ast.get_docstring(node) or "" for node in functions if node.name == wanted), "")


def key_table(those: Iterable[keys.Key]) -> str:
    rows = [(f"`{key.name}`", plain(key.type.replace(" | ", " or ")), f"`{key.default}`", plain(key.meaning)) for key in those]
    return rows_of(("key", "type", "default", "meaning"), rows)


def rows_of(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def plain(text: str) -> str:
    """A text with nothing that Markdown takes for marks or for a column of a table."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([\\*_<>\[\]|])", r"\\\1", p) for p in parts)


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "reference")
