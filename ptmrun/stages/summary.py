"""The summary of an evaluation on the terminal."""

from typing import Any

from rich.table import Table
from rich.text import Text

from ptmrun.errors import printable
from ptmrun.reports import compute_table, phrases
from ptmrun.runs.console import console
from ptmrun.stages.context import Context

PROBES = (("probe_linear", "linear probe"), ("probe_knn", "k-NN"))
MOST_GROUPS = 20  # in the summary; results.json and the report have all of them


def show(context: Context, result: dict[str, Any], sets: list[dict[str, Any]]) -> None:
    """The summary table and the verdict, for a newcomer."""
    run, pretrained, counted = context.run, result["pretrain"], result["counted"]
    methods = phrases.methods(result)
    for line in phrases.warnings(result):
        run.say(line)
    for entry in sets:
        for line in phrases.floors_that_win(entry, methods, counted):
            run.say(line)
    if pretrained and "probe_linear" in pretrained:
        steps = [
            f"{name} {pretrained[f'{key}_untrained']:.3f} untrained -> {pretrained[key]:.3f} pretrained" for key, name in PROBES
        ]
        run.say(f"Features: {'; '.join(steps)} (held-out training {context.data.noun})")
    table = Table(title=f"{phrases.title(result['metric'])} on the test split (mean ± sd over repeats)", title_justify="left")
    table.add_column("")
    for entry in sets:
        table.add_column(phrases.labels(entry["labels_per_class"], counted), justify="right")
    best = [max(s["mean"] for s in entry["scores"].values()) for entry in sets]
    for kind in [k for k in methods if k in sets[0]["scores"]]:
        cells = []
        for entry, top in zip(sets, best, strict=True):
            score = entry["scores"][kind]
            text = phrases.score(score)
            cells.append(f"[bold]{text}[/bold]" if score["mean"] == top else text)
        table.add_row(methods[kind], *cells, style="cyan" if kind == "tuned" else None)
    show_table(run, table)
    for line in [*phrases.signatures(result), *phrases.error_rates(result)]:
        run.say(line)
    if groups := sets[-1]["metrics"].get("groups"):
        show_groups(run, groups)
    table = Table(*compute_table.TITLES)
    for row in compute_table.lines(result):
        table.add_row(*row)
    show_table(run, table)
    for entry in sets:
        for line in phrases.conclusions(entry, methods, counted):
            run.say(line)


def show_groups(run: Any, groups: dict[str, Any]) -> None:
    """The scores of the worst MOST_GROUPS groups."""
    lines = phrases.group_lines(groups)
    hidden = "" if len(lines) <= MOST_GROUPS else f", the worst {MOST_GROUPS} of {len(lines)}"
    table = Table(title=f"By group (first repeat, most labels{hidden})", title_justify="left")
    for title in phrases.GROUP_TITLES:
        table.add_column(title, justify="left" if title == "group" else "right")
    for line in lines[:MOST_GROUPS]:
        table.add_row(*(Text(printable(cell)) for cell in line))
    show_table(run, table)


def show_table(run: Any, table: Table) -> None:
    """For the terminal and for log.txt."""
    console.print(table)
    with console.capture() as capture:
        console.print(table)
    run.note("\n" + capture.get())
