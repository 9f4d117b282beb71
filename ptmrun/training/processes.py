"""Several processes that train one model. Each takes its share of a step's micro-batches; gradients and all that is counted are
added up, so that every process takes the same step. The main process decides, writes and speaks."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ptmrun.errors import UserError, first_line

BUCKET = 2**24  # values that are added up at a time: each time takes as much memory again


class Lost(UserError):
    """Another process has ended."""


class Step(NamedTuple):
    """What all processes have of a step, but for gradients: {name: [sum, items]}, samples, a pending signal, learning rate, and
    whether a checkpoint is due."""

    sums: dict[str, list[float]]
    samples: int
    signum: int | None
    rate: float
    due: bool


@dataclass(frozen=True)
class Processes:
    """This process among all of them. `here`: how many of them are on this machine. `lost(error)`: what to say when an
    exchange with the others has failed."""

    rank: int = 0
    size: int = 1
    here: int = 1
    lost: Callable[[str], str] = lambda error: f"device.processes: another process has ended ({error})"

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, micros: int) -> slice:
        """Which of a step's micro-batches are this process's."""
        return slice(self.rank * micros // self.size, (self.rank + 1) * micros // self.size)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around what all processes do at the same time. Raises Lost when another one has ended."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(self.lost(first_line(error))) from None

    def gather(self, note: Any) -> list[Any]:
        """What every process has, in their order; of JSON."""
        data = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        with self.together():
            dist.all_reduce(sizes)
            padded = torch.zeros(int(sizes.max()), dtype=torch.uint8)
            padded[: len(data)] = data
            rows = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(rows, padded)
        return [json.loads(bytes(row[:size].numpy())) for row, size in zip(rows, sizes.tolist(), strict=True)]

    def send(
        self,
        note: Any = None,
        tensors: dict[str, Tensor] | None = None,
        own: Callable[[str, Tensor], Tensor] = lambda name, value: value,
    ) -> tuple[Any, dict[str, Tensor]]:
        """What the main process gives, JSON and tensors: to all, in main memory; of each tensor own(name, tensor)."""
        mine = {k: v.detach().cpu().contiguous() for k, v in (tensors or {}).items()} if self.main else {}
        kinds = {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in mine.items()}
        note, kinds = self.gather([note, kinds] if self.main else None)[0]
        copies = {}
        with self.together():
            for name, (shape, kind) in kinds.items():
                value = mine[name] if self.main else torch.empty(shape, dtype=getattr(torch, kind))
                if value.numel():
                    dist.broadcast(value.view(-1).view(torch.uint8), 0)
                copies[name] = own(name, value)
        return note, copies

    def rows(self, own: Tensor | None, device: torch.device) -> Tensor:
        """The rows [n, ...] of every process, one after the other, [N, ...]; None of one that has none."""
        shapes = self.gather(None if own is None else [list(own.shape), str(own.dtype).removeprefix("torch.")])
        (_, *inner), kind = next(shape for shape in shapes if shape)
        counts = [shape[0][0] if shape else 0 for shape in shapes]
        dtype = getattr(torch, kind)
        wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype  # what every backend adds
        whole = torch.zeros(sum(counts), *inner, dtype=wide, device=device)
        if own is not None:
            whole[sum(counts[: self.rank]) :][: len(own)] = own.detach()
        with self.together():
            dist.all_reduce(whole)
        return whole.to(dtype)

    def total(self, values: list[float]) -> list[float]:
        """Their sums over all processes."""
        return [sum(each) for each in zip(*self.gather(values), strict=True)]

    def compared(
        self, parts: list[Tensor], micros: list[dict[str, Any]], device: torch.device
    ) -> tuple[slice, Tensor, list[dict[str, Any]]]:
        """Of embeddings of micro-batches [b, ...]: (which of all are these, those of all processes [B, ...], the whole batch as
        one, as far as it holds a number a sample)."""
        numbers: dict[str, list[Tensor]] = {}
        for micro in micros:
            for name, value in micro.items():
                if isinstance(value, Tensor) and value.shape == micro["ids"].shape:
                    numbers.setdefault(name, []).append(value)
        mine = sum(map(len, parts))
        notes = self.gather([mine, {name: values[0].device.type for name, values in numbers.items()}])
        start = sum(count for count, _ in notes[: self.rank])
        whole = self.rows(torch.cat(parts) if parts else None, device)
        batch = {}
        for name, kind in next(known for _, known in notes if known).items():
            values = numbers.get(name)
            batch[name] = self.rows(torch.cat(values) if values else None, device if kind == device.type else torch.device(kind))
        return slice(start, start + mine), whole, [batch]

    def add_up(self, tensors: list[Tensor]) -> None:
        """Replaces each by its sum over all processes."""
        with self.together():
            for bucket in buckets(tensors):
                flat = torch.cat([t.reshape(-1) for t in bucket])
                dist.all_reduce(flat)
                for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def take_step(self, model: nn.Module, before: dict[str, Tensor], own: Step, summed: bool = False) -> Step:
        """Leaves the gradient of the whole batch's mean loss in the parameters, where each process has that of the sum over its
        own micro-batches (summed: those of all processes), and the buffers of `before`, their values before the step, as if one
        process had seen all of these."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        buffers = {name: model.get_buffer(name) for name in before}
        changed = [not torch.equal(buffer, before[name]) for name, buffer in buffers.items()]
        notes = self.gather({**own._asdict(), "trained": [p.grad is not None for p in parameters], "changed": changed})
        sums: dict[str, list[float]] = {}
        for note in notes:
            for name, (total, n) in note["sums"].items():
                known = sums.get(name, [0.0, 0.0])
                sums[name] = [known[0] + total, known[1] + n]
        trained = [p for p, *there in zip(parameters, *(note["trained"] for note in notes), strict=True) if any(there)]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        if not summed:
            self.add_up(gradients)
        torch._foreach_div_(gradients, sums["loss"][1])
        names = [name for name, *there in zip(buffers, *(note["changed"] for note in notes), strict=True) if any(there)]
        if names:
            self.merge(model, {name: before[name] for name in names})
        signals = [note["signum"] for note in notes if note["signum"]]
        samples, signum = sum(note["samples"] for note in notes), signals[0] if signals else None
        return Step(sums, samples, signum, notes[0]["rate"], notes[0]["due"])

    @torch.no_grad()
    def merge(self, model: nn.Module, before: dict[str, Tensor]) -> None:
        """Buffers that a forward pass has changed: running statistics of batch normalisation as if the micro-batches had come one
        after the other; of all others the changes are added up."""
        sizes = [value.numel() for value in before.values()]
        buffers = {name: model.get_buffer(name) for name in before}
        flat = torch.cat([b.reshape(-1).double().cpu() for b in buffers.values()])[None]
        each = [dict(zip(before, row.split(sizes), strict=True)) for row in self.rows(flat, flat.device)]
        layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
        for name, value in before.items():
            start = value.reshape(-1).double().cpu()
            layer, _, kind = name.rpartition(".")
            merged = start
            for own in each:
                kept = 1.0
                if layer in layers and kind.startswith("running_"):
                    counter = f"{layer}.num_batches_tracked"
                    kept = (1 - (layers[layer].momentum or 0.0)) ** float(own[counter] - before[counter].cpu())
                merged = own[name] + kept * (merged - start)
            buffers[name].copy_(merged.view(value.shape))


ALONE = Processes()


def buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type that follow each other, at most BUCKET values of them or one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
