"""`ptmrun predict`: what a run's fine-tuned model says of new inputs."""

import json
from typing import Any

from ptmrun.commands import inputs
from ptmrun.commands.table import Call
from ptmrun.errors import UserError, printable
from ptmrun.stages.predictor import Predictor

ENDINGS = (".csv", ".jsonl", ".parquet")


def command(call: Call) -> int:
    """Exit code 1 where something could not be read."""
    options, as_json = call.options, "--json" in call.flags
    path = inputs.target(options.out, ENDINGS)
    if path and as_json:
        raise UserError("predict: out= writes a file, --json prints; give one of them")
    predictor = Predictor.load(call.runs[0], options.repeats == "all")
    given = inputs.inputs_of(predictor.networks, call.names[1:], options, answered=True)
    rows: list[dict[str, Any]] = []
    errors = 0
    for chunk in inputs.in_chunks(given, "predicting"):
        answers = predictor.predict([x.raw for x in chunk], options.top)
        made = [{"input": x.where, **answer} for x, answer in zip(chunk, answers, strict=True)]
        errors += sum("error" in row for row in made)
        if path:
            rows += made
            continue
        for row in made:
            print(json.dumps(row, ensure_ascii=False) if as_json else line(row))
    if path:
        inputs.write(path, rows)
        inputs.note(f"{len(rows):,} rows written to {path}")
    return inputs.summary(errors, len(given))


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
