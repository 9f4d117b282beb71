"""`ptmrun embed`: a run's encoder's features of new inputs."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ptmrun.commands import inputs
from ptmrun.commands.table import Call
from ptmrun.data.modality import Input, Unreadable
from ptmrun.errors import UserError
from ptmrun.stages.predictor import Predictor
from ptmrun.storage.files import write_atomic

ENDINGS = (".npy", ".parquet", ".csv")


def command(call: Call) -> int:
    """Exit code 1 where something could not be read."""
    options = call.options
    path = inputs.target(options.out, ENDINGS)
    if path is None:
        raise UserError(f"embed: expected out= and a file ending in {' '.join(ENDINGS)}")
    beside = inputs.target(str(path.with_suffix(".jsonl")), (".jsonl",)) if path.suffix == ".npy" else None
    predictor = Predictor.load(call.runs[0])
    given = inputs.inputs_of(predictor.networks, call.names[1:], options, answered=False)
    features: list[np.ndarray | Unreadable] = []
    for chunk in inputs.in_chunks(given, "embedding"):
        try:
            features += predictor.embed([x.raw for x in chunk], options.weights == "pretrained", options.parts)
        except TypeError as error:
            raise UserError(f"parts=true: {error}") from None
    errors = [x for x in features if isinstance(x, Unreadable)]
    if beside:
        write_atomic(path, array(features, options.parts))
        inputs.write(beside, [named(x, f) for x, f in zip(given, features, strict=True)])
    else:
        inputs.write(path, rows(path, given, features))
    names = f", their names to {beside}" if beside else ""
    inputs.note(f"features of {len(features) - len(errors):,} inputs written to {path}{names}")
    return inputs.summary(len(errors), len(features))


def array(features: list[np.ndarray | Unreadable], parts: bool) -> bytes:
    """A .npy file of float32 [N, D], or of parts [N, n, D]: NaN in the place of what cannot be read, and where others have more
    parts. Raises UserError where nothing could be read."""
    shapes = [x.shape for x in features if not isinstance(x, Unreadable)]
    if not shapes:
        raise UserError("none of the inputs could be read")
    values = np.full((len(features), *((max(n for n, _ in shapes),) if parts else ()), shapes[0][-1]), np.nan, np.float32)
    for row, own in zip(values, features, strict=True):
        if not isinstance(own, Unreadable):
            row[: len(own)] = own
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def named(given: Input, own: np.ndarray | Unreadable) -> dict[str, Any]:
    return {"input": given.where, **({"error": own.reason} if isinstance(own, Unreadable) else {})}


def rows(path: Path, given: list[Input], features: list[np.ndarray | Unreadable]) -> list[dict[str, Any]]:
    """In .parquet a row an input, with its features as a list; in .csv a column a feature, and a row for each part."""
    made: list[dict[str, Any]] = []
    for x, own in zip(given, features, strict=True):
        if isinstance(own, Unreadable):
            made.append(named(x, own))
        elif path.suffix == ".parquet":
            made.append({"input": x.where, "features": own.tolist()})
        elif own.ndim == 1:
            made.append({"input": x.where, **{f"feature_{i}": value for i, value in enumerate(own.tolist())}})
        else:
            for place, part in enumerate(own.tolist()):
                made.append({"input": x.where, "part": place, **{f"feature_{i}": value for i, value in enumerate(part)}})
    return made
