"""`ptmrun verify`: run an experiment again and compare its scores with its certificate.

The certificate stands beside the settings in conf/experiment/<name>.yaml and is no part of a run's config:

    certificate:
      expected:                                             # means over the seeds, on the test split
        labels_10: {score: 0.92, tolerance: 0.01}           # fine-tuned with 10 labels per class; labels_all: with all; and
                                                            # outcome: better, of the verdict (reports/verdict.py)
        probe_linear: {score: 0.95, tolerance: 0.01}        # or probe_knn: of the pretrained features, on held-out images
      seeds: [0, 1, 2]
      seconds: 300                                          # of one seed, the whole command; may be left out
      machine: {cpu: ..., cores: 2, torch: 2.10.0}          # where it was measured
      quick: {overrides: [pretrain.steps=100], expected: ..., seeds: ..., seconds: ..., machine: ...}
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError
from rich.table import Table

from ptmrun.commands.table import Call
from ptmrun.config import choices, schema
from ptmrun.errors import Interrupted, UserError, nearest
from ptmrun.reports import verdict
from ptmrun.runs import config_file
from ptmrun.runs.console import console, for_programs, print_json
from ptmrun.runs.folder import Run

Entry = Annotated[str, Field(pattern=r"^(labels_([1-9][0-9]*|all)|probe_linear|probe_knn)$")]


class Expected(schema.Strict):
    score: schema.Fraction
    tolerance: schema.Positive
    outcome: verdict.Outcome | None = None


class Machine(schema.Strict):
    cpu: str
    cores: schema.Count
    torch: str


class Certificate(schema.Strict):
    """What an experiment promises."""

    expected: Annotated[dict[Entry, Expected], Field(min_length=1)]
    seeds: Annotated[list[schema.Natural], Field(min_length=1)]
    seconds: schema.Positive | None = None
    machine: Machine


class Quick(Certificate):
    """What it promises with `overrides`."""

    overrides: list[str]


class Full(Certificate):
    quick: Quick | None = None


class Measured(NamedTuple):
    """One run of an experiment."""

    run: Run
    scores: dict[str, float]
    seconds: float


def certificate(name: str) -> Full | None:
    """Of an experiment, None where its file has none. Raises UserError with one line for every mistake in it."""
    if name not in choices.names("experiment"):
        raise UserError(f"{name}: no such experiment{nearest(name, choices.names('experiment'))}")
    path = choices.files("experiment")[name][1]
    settings = config_file.load_plain(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path.name}: expected a mapping of keys to values")
    if (raw := settings.get("certificate")) is None:
        return None
    try:
        return Full.model_validate(raw)
    except ValidationError as error:
        raise UserError(*(f"{path.name}: {line}" for line in mistakes(error))) from None


def mistakes(error: ValidationError) -> list[str]:
    """One line per wrong key."""
    lines = []
    for e in error.errors():
        key = ".".join(["certificate", *(str(part) for part in e["loc"] if part != "[key]")])
        text = {"extra_forbidden": "no such key", "missing": "missing"}.get(e["type"])
        if "[key]" in e["loc"]:
            text = "expected labels_<number>, labels_all, probe_linear or probe_knn"
        lines.append(f"{key}: {text or 'expected ' + e['msg'].replace('Input should be ', '').replace('a valid ', '')}")
    return lines


def listing() -> None:
    """Prints every experiment with what its certificates promise."""
    for name in choices.names("experiment"):
        console.print(f"{name}: {choices.summary('experiment', name)}", markup=False)
        full = certificate(name)
        for title, certified in (("full", full), ("--quick", full and full.quick)):
            if certified:
                scores = ", ".join(f"{k} {e.score:.3f} ± {e.tolerance:.3f}" for k, e in certified.expected.items())
                each = (
                    f"{len(certified.seeds)} x {certified.seconds:.0f} s"
                    if certified.seconds
                    else f"{len(certified.seeds)} x ? s"
                )
                console.print(f"  {title:<8} {scores}; {each} on {certified.machine.cpu}", markup=False)


def documents() -> dict[str, Any]:
    """The same for programs: {experiment: its certificate, or None}."""
    known = {name: certificate(name) for name in choices.names("experiment")}
    return {name: full and full.model_dump() for name, full in known.items()}


def verify(names: list[str], quick: bool, outputs: str) -> dict[str, dict[str, Any]]:
    """Runs the experiments, prints how their scores compare, and returns that: {experiment: see `compare`}."""
    wanted: dict[str, Certificate] = {}
    for name in names:
        certified = certificate(name)
        chosen = certified.quick if certified and quick else certified
        if chosen is None:
            raise UserError(
                f"{name}: its file has no certificate{' for --quick' if quick and certified else ''}; nothing to verify"
            )
        wanted[name] = chosen
    compared = {}
    for name, promise in wanted.items():
        overrides = promise.overrides if isinstance(promise, Quick) else []
        measured = [measure(name, seed, overrides, outputs) for seed in promise.seeds]
        compared[name] = compare(name, promise, measured)
    return compared


def measure(name: str, seed: int, overrides: list[str], outputs: str) -> Measured:
    """One run in a process of its own, as typed; what it prints is passed on."""
    argv = [f"experiment={name}", f"seed={seed}", *overrides, f"outputs={outputs}"]
    console.print(f"ptmrun {' '.join(argv)}", style="bold", markup=False)
    begun, folder = time.perf_counter(), None
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-m", "ptmrun", *argv], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                console.print(line, end="", markup=False)
                if line.startswith("Run folder: "):
                    folder = line.removeprefix("Run folder: ").strip()
        except KeyboardInterrupt:  # the run got it too, and saves its state
            process.wait()
            raise
    code = process.returncode
    if code in (130, 143):
        raise Interrupted(code - 128)
    if code or folder is None:
        raise UserError(f"{name}: the run with seed={seed} ended with exit code {code}, not 0")
    run = Run.open(Path(folder))
    results = run.results()
    if results is None:
        raise UserError(f"{name}: the run with seed={seed} has no results.json; a certificate needs a run that evaluates")
    return Measured(run, scores_of(results), time.perf_counter() - begun)


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    """What a certificate can name, out of results.json."""
    scores = {f"labels_{s['labels_per_class'] or 'all'}": s["scores"]["tuned"]["mean"] for s in results["by_labels"]}
    return scores | {k: v for k, v in (results["pretrain"] or {}).items() if k in ("probe_linear", "probe_knn")}


def verdicts(measured: list[Measured]) -> dict[str, dict[str, Any]]:
    """By number of labels, over the seeds, where the experiment compares with training from scratch."""
    all_results = [results for m in measured if (results := m.run.results())]
    weights = len({results.get("weights_sha256") for results in all_results})
    grouped = zip(*(results["by_labels"] for results in all_results), strict=True)
    each = {f"labels_{entries[0]['labels_per_class'] or 'all'}": verdict.of_runs(list(entries), weights) for entries in grouped}
    return {key: found for key, found in each.items() if found}


def compare(name: str, promise: Certificate, measured: list[Measured]) -> dict[str, Any]:
    """Prints the table of one experiment. Returns whether every score is within its tolerance (passed), what is not (drift), what
    was expected and measured of each, the runs and the seconds of one."""
    table = Table("", "expected", "measured", "difference", "tolerance", f"seeds {', '.join(map(str, promise.seeds))}")
    table.title, table.title_justify = f"{name}: means over {len(measured)} seeds", "left"
    drifted, scores = list[str](), {}
    for key, expected in promise.expected.items():
        if key not in measured[0].scores:
            raise UserError(f"{name}: its certificate expects {key}, and the run has {', '.join(measured[0].scores)}")
        values = [m.scores[key] for m in measured]
        gap = sum(values) / len(values) - expected.score
        inside = abs(gap) <= expected.tolerance + 1e-9
        drifted += [] if inside else [key]
        scores[key] = {"expected": expected.score, "tolerance": expected.tolerance, "measured": values}
        cells = f"{expected.score:.4f}", f"{expected.score + gap:.4f}", f"{gap:+.4f}", f"{expected.tolerance:.4f}"
        table.add_row(key, *cells, " ".join(f"{v:.4f}" for v in values), style=None if inside else "bold red")
    console.print(table)
    for key, found in verdicts(measured).items():
        console.print(f"{key}: {verdict.sentence(found)}", markup=False)
        wanted = promise.expected[key].outcome if key in promise.expected else None
        drifted += [f"the outcome of {key} ({found['outcome']}, not {wanted})"] if wanted not in (None, found["outcome"]) else []
    seconds = sum(m.seconds for m in measured) / len(measured)
    promised = f"{promise.seconds:.0f} s" if promise.seconds else "none"
    console.print(f"time: {seconds:.0f} s a seed, {promised} in the certificate", markup=False)
    for line in elsewhere(promise.machine, measured[0].run):
        console.print(line, markup=False)
    summary = f"DRIFT in {', '.join(drifted)}" if drifted else "within tolerance"
    console.print(f"{name}: {summary}", style="bold red" if drifted else "green", markup=False)
    runs = [str(m.run.folder) for m in measured]
    return {"passed": not drifted, "drift": drifted, "scores": scores, "runs": runs, "seconds": round(seconds, 1)}


def elsewhere(machine: Machine, run: Run) -> list[str]:
    """How the machine of a run differs from the certificate's."""
    hardware = run.manifest["hardware"]
    here = {"cpu": hardware["cpu"], "cores": hardware["cores"], "torch": run.manifest["packages"]["torch"]}
    return [f"{k}: {v} here, {there} in the certificate" for k, v in here.items() if v != (there := getattr(machine, k))]


def command(call: Call) -> int:
    as_json = "--json" in call.flags
    if not call.names:
        if as_json:
            print_json(documents())
        else:
            listing()
        return 0
    with for_programs(as_json):
        compared = verify(call.names, "--quick" in call.flags, call.options.outputs)
    if as_json:
        print_json(compared)
    return 0 if all(result["passed"] for result in compared.values()) else 1
