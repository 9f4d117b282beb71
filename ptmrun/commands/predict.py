"""`ptmrun predict`: what a run's fine-tuned model says of new inputs."""

import json
from pathlib import Path
from typing import Any

from ptmrun.commands import inputs
from ptmrun.commands.table import Call
from ptmrun.data.modality import Input
from ptmrun.errors import UserError, printable
from ptmrun.stages.networks import Networks
from ptmrun.stages.predictor import Predictor
from ptmrun.storage.files import write_atomic

ENDINGS = (".csv", ".jsonl", ".parquet")
FEW = 8  # inputs at a time, where a problem opens large ones itself


def command(call: Call) -> int:
    """Exit code 1 where something could not be read."""
    options, as_json = call.options, "--json" in call.flags
    if options.out and as_json:
        raise UserError("predict: out= writes a file, --json prints; give one of them")
    predictor = Predictor.load(call.runs[0], options.repeats == "all")
    problem = predictor.networks.problem
    path = inputs.target(options.out, (*ENDINGS, *problem.written))
    album = Album(options.pictures, predictor.networks) if options.pictures else None
    given = inputs.inputs_of(predictor.networks, call.names[1:], options, answered=True)
    rows: list[dict[str, Any]] = []
    errors = 0
    for chunk in inputs.in_chunks(given, "predicting", FEW if problem.opened else inputs.CHUNK):
        answers = predictor.predict([x.raw for x in chunk], options.top)
        made = [{"input": x.where, **answer} for x, answer in zip(chunk, answers, strict=True)]
        for x, row in zip(chunk, made, strict=True):
            if album and "error" not in row:
                album.add(x, row)
            row.pop("pictures", None)
        errors += sum("error" in row for row in made)
        if path:
            rows += made
            continue
        for row in made:
            print(json.dumps(row, ensure_ascii=False) if as_json else line(row))
    if path:
        own, setup = problem.written.get(path.suffix), predictor.networks.problem_setup
        inputs.write(path, rows, (lambda written: own(written, setup)) if own else None)
        inputs.note(f"{len(rows):,} rows written to {path}")
    return inputs.summary(errors, len(given))


class Album:
    """A new folder of pictures that show what is said of them. Raises UserError where it is there already, or where there are
    none to be shown."""

    def __init__(self, folder: str, networks: Networks):
        self.folder, self.names = Path(folder).expanduser(), set[str]()
        if networks.problem.drawn is None:
            name = networks.cfg.downstream.name
            raise UserError(f"pictures={folder}: downstream={name} says nothing that is drawn; leave it out")
        self.drawn = networks.problem.drawn
        try:
            self.folder.mkdir()
        except FileExistsError:
            raise UserError(f"pictures={folder}: is there already; choose a folder that is not") from None
        except OSError as error:
            raise UserError(f"pictures={folder}: {error.strerror}") from None

    def add(self, shown: Input, row: dict[str, Any]) -> None:
        stem, number = Path(shown.where).stem or "picture", 1
        name = stem
        while name in self.names:
            number += 1
            name = f"{stem}-{number}"
        self.names.add(name)
        made = self.drawn(shown.raw, row)
        for ending, content in (made if isinstance(made, dict) else {"": made}).items():
            write_atomic(self.folder / f"{name}{ending}.png", content)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal: the input, the answer and how sure it is, and what else is likely."""
    if "error" in row:
        return "\t".join(map(printable, (row["input"], row["error"])))
    answer, sure, others = row["prediction"], row.get("confidence"), list(row.get("probabilities", {}).items())
    if "words" in row:
        answer = " ".join(f"{word}/{tag or '-'}" for word, tag in zip(row["words"], answer, strict=True))
    if isinstance(answer, list):
        answer = "; ".join(answer) or "-"
    cells = [row["input"], answer or "-", *([f"{sure:.3f}"] if isinstance(sure, float) else [])]
    more = ", ".join(f"{name} {chance:.3f}" for name, chance in others if name != answer)
    return "\t".join(map(printable, [*cells, *([f"({more})"] if more else []), *unlike(row)]))


def unlike(row: dict[str, Any]) -> list[str]:
    """What makes a row doubtful: that next to all held-out samples are more like the training data."""
    return [f"unlike the training data ({row['unlike']:.0f} of 100)"] if row.get("unlike", 0) >= DOUBTFUL else []


DOUBTFUL = 99.0  # of a hundred held-out samples are nearer to the training data
