"""ONNX, for onnxruntime and others: model.onnx, with a script beside it that needs no torch."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrun.errors import UserError
from ptmrun.exports import recipe
from ptmrun.exports.graph import compared, exporting, traced
from ptmrun.exports.written import Written
from ptmrun.stages.networks import Networks


@torch.no_grad()
def write(networks: Networks, model: Any, folder: Path, inputs: Any) -> Written:
    """Raises UserError where onnxruntime is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch.onnx writes with
    except ImportError:
        raise UserError("format=onnx: needs onnx, onnxscript and onnxruntime: pip install 'ptmrun[onnx]'") from None
    graph = traced(networks, model, inputs, "onnx")
    with exporting(networks, "onnx", folder):
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            graph.examples,
            str(folder / "model.onnx"),
            input_names=graph.names,
            output_names=[graph.result],
            dynamic_shapes=graph.dynamic,
            dynamo=True,
            external_data=False,
        )
    recipe.write(networks, model, graph, folder)
    if script := recipe.script(networks, model):
        shutil.copyfile(script, folder / "run.py")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])

    def call(inputs: Any) -> Tensor:
        given = zip(graph.names, graph.taken(inputs), strict=True)
        [result] = session.run(None, {name: value.numpy() for name, value in given})
        return torch.from_numpy(result)

    return compared(graph, "model.onnx", call, inputs)
