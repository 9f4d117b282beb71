"""A model as one function of tensors, for formats that hold a graph of operations."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from ptmrun.batch import packed
from ptmrun.errors import UserError, first_line
from ptmrun.exports.written import Written, real
from ptmrun.stages.networks import Networks
from ptmrun.storage.files import remove

NAMES = {
    "": "inputs",
    "ids": "input_ids",
    "values": "input_values",
    "mask": "attention_mask",
    "types": "token_type_ids",
}  # of tensors, as libraries have them
RESULTS = {"boxes": "places"}  # what comes out, where it is no logits


class Graph(nn.Module):
    """A fine-tuned model, or an encoder: the tensors of its inputs -> logits [B, classes] or [B, T, n], or features [B, D]. Masks
    are numbers, 0 where there is padding; of other problems see `Model.outputs`. names: of the tensors; examples: some."""

    def __init__(self, networks: Networks, model: Any, inputs: Any):
        super().__init__()
        self.model = (model or networks.starting_encoder()).cpu().float().eval()
        self.function = model.outputs if model else self.model.features
        self.kind = None if isinstance(inputs, Tensor) else type(inputs)
        named = packed(inputs)
        self.fields, self.names = list(named), [NAMES.get(name, name) for name in named]
        self.result = RESULTS.get(model.graph_task, "logits") if model else "features"
        self.masks = [value.dtype == torch.bool for value in named.values()]
        self.length = getattr(networks.processor, "length", None)
        self.examples = self.taken(inputs)

    def taken(self, inputs: Any) -> tuple[Tensor, ...]:
        """An encoder's inputs as the arguments of `forward`."""
        return tuple(x.cpu().long() if mask else x.cpu() for x, mask in zip(packed(inputs).values(), self.masks, strict=True))

    def forward(self, *tensors: Tensor) -> Tensor:
        values = [x != 0 if mask else x for x, mask in zip(tensors, self.masks, strict=True)]
        return self.function(values[0] if self.kind is None else self.kind(**dict(zip(self.fields, values, strict=True)))).float()

    @property
    def dynamic(self) -> tuple[tuple[dict[int, Any], ...]]:
        """Which sizes of the arguments may differ: that of the batch, and of sequences their length."""
        batch = Dim("batch", min=1)
        sequence = {} if self.kind is None else {1: Dim("length", min=2, max=self.length)}
        return (tuple({0: batch, **sequence} for _ in self.names),)


def traced(networks: Networks, model: Any, inputs: Any, name: str) -> Graph:
    """Raises UserError where a model does not answer with one tensor."""
    if model is not None and not (model.library_task or model.graph_task):
        detector = getattr(networks.cfg.downstream, "detector", None)
        what = f"downstream.detector={detector}" if detector else f"downstream={networks.cfg.downstream.name}"
        raise UserError(f"format={name}: {what} answers in many steps; leave format= out")
    return Graph(networks, model, inputs)


@torch.no_grad()
def compared(graph: Graph, what: str, call: Callable[[Any], Tensor], inputs: Any) -> Written:
    """What both give for all inputs at once, and for the first alone: the graph must take any number."""
    both = (inputs, first(inputs))
    ours, theirs = (torch.cat([real(f(x).cpu(), x) for x in both]) for f in (lambda x: graph(*graph.taken(x)), call))
    return Written(what, ours, theirs, call)


@contextlib.contextmanager
def exporting(networks: Networks, name: str, folder: Path) -> Iterator[None]:
    """A new folder, which is gone again where torch has no graph of the model: UserError."""
    folder.mkdir(parents=True)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of the exporters about themselves; what they write is compared
            yield
    except Exception as error:  # of many kinds
        remove(folder)
        why = f"torch cannot write model={networks.cfg.model.name} as one graph ({type(error).__name__}: {first_line(error)})"
        raise UserError(f"format={name}: {why}; choose another format") from None


def first(inputs: Any) -> Any:
    return inputs[:1] if isinstance(inputs, Tensor) else inputs.map(lambda x: x[:1])
