"""torch.export's own format: model.pt2, which torch alone reads and runs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmrun.exports import recipe
from ptmrun.exports.graph import compared, exporting, traced
from ptmrun.exports.written import Written
from ptmrun.stages.networks import Networks


@torch.no_grad()
def write(networks: Networks, model: Any, folder: Path, inputs: Any) -> Written:
    graph = traced(networks, model, inputs, "pt2")
    with exporting(networks, "pt2", folder):
        program = torch.export.export(graph, graph.examples, dynamic_shapes=graph.dynamic)
        torch.export.save(program, folder / "model.pt2")
    recipe.write(networks, model, graph, folder)
    loaded = torch.export.load(folder / "model.pt2").module()

    @torch.no_grad()
    def call(inputs: Any) -> Tensor:
        return loaded(*graph.taken(inputs))

    return compared(graph, "model.pt2 (torch.export)", call, inputs)
