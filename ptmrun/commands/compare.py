"""Several runs side by side: what differs in their configs, scores with their noise, curves in one figure."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ptmrun.commands.table import Call
from ptmrun.config import parsing, schema, secrets
from ptmrun.config.init_source import origin
from ptmrun.errors import UserError
from ptmrun.reports.scores_table import REPEATS, Row, cells, csv_text, page, pretraining, table
from ptmrun.runs import config_file
from ptmrun.runs.console import console, for_programs, print_json
from ptmrun.runs.folder import Run, stamp
from ptmrun.runs.lineage import CHAIN
from ptmrun.stages.reuse import SECTIONS
from ptmrun.storage.files import new_folder, write_atomic

HIDDEN = schema.keys_with(schema.Role.HIDDEN)  # settings that do not make runs different


def flat_config(run: Run) -> dict[str, Any]:
    """The config with dotted keys."""
    return schema.flat(parsing.plain(config_file.load(run.sound("config.yaml"))))


def weights(own: dict[str, Any]) -> list[Any]:
    """What the pretrained weights of a run with these settings are: the settings of the pretrainings that made them, but for
    REPEATS, and what these began with. Where a run that `init` names is gone, that name."""
    settings: list[Any] = []
    for _ in range(CHAIN):
        if own["stage"] in ("all", "pretrain"):
            settings.append({k: v for k, v in own.items() if k.split(".")[0] in SECTIONS["pretrain"] and k not in REPEATS})
        if origin(own["init"]) != "run":
            break
        try:
            parent = Run.open(Path(own["init"]))
        except UserError:
            break
        own = flat_config(parent)
    return [*settings, own["init"]]


def differences(runs: list[Run]) -> dict[str, list[Any]]:
    """Config keys whose values differ -> the value of each run (None where the key is not there). `init` is one where the weights
    are others, not where a run does in stages what another does at once."""
    return differing([flat_config(run) for run in runs])


def differing(configs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(k for c in configs for k in c if k.split(".")[0] not in HIDDEN)
    if len({repr(weights(c)) for c in configs}) == 1:
        del keys["init"]
    values_of_key = {key: [c.get(key) for c in configs] for key in keys}
    return {key: values for key, values in values_of_key.items() if any(v != values[0] for v in values)}


def grouped(runs: list[Run]) -> list[Row]:
    """A row for each setting, named A, B ...: runs whose configs, and those of their pretrainings, differ by REPEATS alone share
    one."""
    configs = [flat_config(run) for run in runs]
    differing_keys = differing(configs)
    rows: dict[str, Row] = {}
    for i, run in enumerate(runs):
        identity = repr(
            [weights(configs[i]), *(values[i] for key, values in differing_keys.items() if key not in (*REPEATS, "init"))]
        )
        row = rows.setdefault(identity, Row({"run": letters(len(rows))}))
        row.runs.append(run)
        row.seconds += sum(run.manifest.get("wall_s", {}).values())
    return list(rows.values())


def letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA"""
    return (letters(number // 26 - 1) if number > 25 else "") + chr(ord("A") + number % 26)


def compare(runs: list[Run], outputs: str) -> Path:
    """Shows what differs, the scores and the curves; writes them into a new folder, which it returns."""
    rows = grouped(runs)
    differing_keys = differences([row.runs[0] for row in rows])
    names = [(row.setting["run"], ", ".join(str(run.folder) for run in row.runs)) for row in rows]
    changed = [
        [key, *("" if v is None else str(v) for v in values)] for key, values in differing_keys.items() if key not in REPEATS
    ]
    for name, folders in names:
        console.print(f"{name}: {folders}", markup=False)
    settings = Table(title="Settings that differ", title_justify="left")
    for title in ("", *(name for name, _ in names)):
        settings.add_column(title, overflow="fold")
    for texts in changed:
        settings.add_row(*map(escape, texts))
    console.print(settings if changed else "The settings do not differ.")
    console.print(table(rows, "Scores"))
    folder = new_folder(Path(outputs), f"{stamp()}_compare")
    titles = ["", *(name for name, _ in names)]
    made = page(rows, "Comparison", names=names, settings=(titles, changed) if changed else None)
    write_atomic(folder / "compare.html", secrets.masked(made))
    write_atomic(folder / "scores.csv", secrets.masked(csv_text(rows)))
    return folder


def document(runs: list[Run]) -> dict[str, Any]:
    """The same for programs: the runs of each setting A, B ...; the settings that differ; and for each column of scores mean,
    standard deviation, how far it is from the best and the noise of that, and the verdict on pretraining."""
    rows = grouped(runs)
    names = [row.setting["run"] for row in rows]
    differing_keys = differences([row.runs[0] for row in rows])
    scores = {
        column: {
            name: {**asdict(cell), "pretraining": pretraining(row, column)}
            for name, row, cell in zip(names, rows, line, strict=True)
            if cell
        }
        for column, line in cells(rows).items()
    }
    return {
        "runs": {name: [str(run.folder) for run in row.runs] for name, row in zip(names, rows, strict=True)},
        "settings": {key: dict(zip(names, values, strict=True)) for key, values in differing_keys.items() if key not in REPEATS},
        "scores": scores,
    }


def command(call: Call) -> int:
    with for_programs("--json" in call.flags):
        folder = compare(call.runs, call.options.outputs)
    if "--json" in call.flags:
        print_json({**document(call.runs), "folder": str(folder)})
    else:
        console.print(f"Written to {folder}", markup=False)
    return 0
