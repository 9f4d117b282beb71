"""How a model that is trained, and its checkpoints, lie in the processes: whole in each, or (`device.shard`) a part in each."""

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ptmrun.errors import UserError
from ptmrun.models.recompute import blocks
from ptmrun.storage import part_files, tensor_files
from ptmrun.training.processes import Processes

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # {name: tensor} and state of a checkpoint


class Whole:
    """All weights, gradients and moments in each process; the main one writes and reads."""

    sharded = False

    def __init__(self, processes: Processes):
        self.processes = processes

    def trained(self, model: Any) -> Any:
        """What is trained in place of a model: it itself."""
        return model

    def give(self, model: nn.Module) -> None:
        """Makes the model have the weights and buffers of what is trained; in the main process."""

    def take_buffers(self, model: nn.Module) -> None:
        """Makes what is trained have the model's buffers; in the main process."""

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """In the main process these, whole. All processes call it, where they have parts of them."""
        return tensors

    def mine(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process writes of them."""
        return tensors if self.processes.main else {}

    def save(self, file: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes a checkpoint of what every process has of the tensors (`mine`). All processes call it."""
        if self.processes.main:
            tensor_files.save(file, tensors, state)
            part_files.remove(file)

    def load(self, file: Path | None, like: dict[str, Tensor]) -> Saved | None:
        """What the main process finds in a checkpoint, as each has the tensors that they are `like`; the good ones (see
        checkpoint.State) as `mine` gives them. All processes call it."""
        saved = part_files.load(file) if file and self.processes.main else None
        if self.processes.size == 1:
            return saved
        tensors, state = saved or ({}, None)
        good = {name: value for name, value in tensors.items() if name.startswith("good.")}
        state, sent = self.processes.send(state, {name: value for name, value in tensors.items() if name not in good})
        return None if state is None else (sent | good, state)

    def number(self, value: Tensor) -> float:
        return float(value)

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around what needs weights of other processes. Raises Lost when one of these has ended."""
        yield


class Parts(Whole):
    """A part in each, by PyTorch's FSDP2: a block of a network from transformers is gathered when it is computed, forward and
    backward, and its gradients are added up and taken apart again; what is in no block is gathered for the whole pass. A process
    other than the main one gives its model away for that; the main one keeps it, for probes and files."""

    sharded = True

    def __init__(self, processes: Processes, micros: int):
        """micros: of a step. Raises UserError for a number of micro-batches a step of which each process cannot take as many."""
        if micros % processes.size:
            why = f"a step has {micros} micro-batches, which {processes.size} processes cannot share equally"
            raise UserError(f"device.shard=true: {why}; leave it out, or give a larger batch_size")
        super().__init__(processes)
        self.inner: Any = None

    def trained(self, model: Any) -> Any:
        """Raises UserError for a model whose weights cannot lie in parts."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if model.compares:
            raise UserError(
                "device.shard=true: this objective compares all samples of a batch and needs its weights whole; leave it out"
            )
        if numbers := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
            raise UserError(f"device.shard=true: {numbers[0]} is a single number, which cannot be taken apart; leave it out")
        _, sent = self.processes.send(None, model.state_dict())
        model.load_state_dict(sent)
        self.inner = copy.deepcopy(model) if self.processes.main else model
        for parameter in self.inner.parameters():
            parameter.data = parameter.data.contiguous()  # in memory by their first dimension, of which each takes a part
        mesh = init_device_mesh(next(model.parameters()).device.type, (self.processes.size,))
        for block in reversed(blocks(self.inner)):  # those inside others first
            fully_shard(block, mesh=mesh)
            for part in block.modules():  # an objective may compute a block by its parts
                if part is not block:
                    part.register_forward_pre_hook(lambda *_, block=block: block.unshard())
        fully_shard(self.inner, mesh=mesh)
        for module in self.inner.modules():
            if isinstance(module, FSDPModule):  # sums, not means; by a factor alone gloo would be asked for what it has not
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)
        return self.inner

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        for name, value in self.whole(dict(self.inner.named_parameters())).items():
            model.get_parameter(name).copy_(value)
        if self.processes.main:
            for name, buffer in self.inner.named_buffers():
                model.get_buffer(name).copy_(buffer)

    @torch.no_grad()
    def take_buffers(self, model: nn.Module) -> None:
        if self.processes.main:
            for name, buffer in model.named_buffers():
                self.inner.get_buffer(name).copy_(buffer)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """In main memory, gathered one after the other."""
        from torch.distributed.tensor import DTensor

        copies = {}
        for name, value in tensors.items():
            with self.processes.together():
                full: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
            if self.processes.main:
                copies[name] = full.detach().cpu()
        return copies

    def mine(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its part of each; of those that are whole in each process the main one writes all."""
        from torch.distributed.tensor import DTensor

        apart = {name: value for name, value in tensors.items() if isinstance(value, DTensor)}
        return (tensors if self.processes.main else {}) | {name: value.to_local() for name, value in apart.items()}

    def save(self, file: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Each process its parts; the main one names them when all are written."""
        rank, size = self.processes.rank, self.processes.size
        folder, _ = self.processes.send(part_files.new_folder(file) if self.processes.main else None)
        rows = {name: len(value) if value.ndim else 0 for name, value in tensors.items()}
        before = self.processes.gather(rows)[:rank]
        begin = {name: sum(each.get(name, 0) for each in before) for name in tensors}
        tensor_files.save(part_files.part(file.with_name(folder), rank, size), tensors, rows=begin)
        self.processes.gather(None)
        if self.processes.main:
            part_files.commit(file, folder, size, state)

    def load(self, file: Path | None, like: dict[str, Tensor]) -> Saved | None:
        """Each process reads its parts; of a checkpoint in one file the main one sends them."""
        tensors, state = tensor_files.load(file) if file and self.processes.main else ({}, None)

        def own(name: str, value: Tensor) -> Tensor:
            return self.own(value, like.get(name.removeprefix("good.")))

        (place, state), sent = self.processes.send([file and str(file.resolve()), state], tensors, own)
        if state is None:
            return None
        if parts := part_files.named(Path(place), state):
            sent = self.read(parts, like)
            del state["parts"]
        good = {name: value for name, value in sent.items() if name.startswith("good.")}
        return {name: value for name, value in sent.items() if name not in good} | self.mine(good), state

    def read(self, parts: list[Path], like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its own of all parts, of which there may be another number than of processes. Raises UserError."""
        from torch.distributed.tensor import DTensor

        rank, size = self.processes.rank, self.processes.size
        needed = sorted({0, rank}) if len(parts) == size else range(len(parts))  # in the first is what is not taken apart
        mine: dict[str, Any] = {}
        rows: Counter[str] = Counter()
        for number in needed:
            pieces, begins = part_files.read(parts[number])
            for name, piece in pieces.items():
                whole: Any = like.get(name.removeprefix("good."))
                if not isinstance(whole, DTensor) or not piece.ndim:
                    mine[name] = piece
                    continue
                if name not in mine:
                    mine[name] = torch.empty_like(whole, dtype=piece.dtype, requires_grad=False)
                part, start, begin = mine[name].to_local(), rank * math.ceil(len(whole) / size), begins[name]
                if piece.shape[1:] != part.shape[1:]:
                    raise UserError(f"{parts[number]}: {name} does not fit the model; refused")
                first, last = max(start, begin), min(start + len(part), begin + len(piece))
                if first < last:
                    part[first - start : last - start].copy_(piece[first - begin : last - begin])
                    rows[name] += last - first
        if short := [name for name, x in mine.items() if isinstance(x, DTensor) and rows[name] != len(x.to_local())]:
            raise UserError(f"{parts[0].parent}: {short[0]} does not fit the model; refused")
        return mine

    def own(self, value: Tensor, like: Tensor | None) -> Tensor:
        """Of a whole tensor what this process has, as it has that of another one."""
        from torch.distributed.tensor import DTensor

        if not isinstance(like, DTensor) or like.shape != value.shape:
            return value
        part: Any = torch.empty_like(like, dtype=value.dtype, requires_grad=False)
        rows = value.chunk(self.processes.size)  # of which there may be fewer
        if self.processes.rank < len(rows):
            part.to_local().copy_(rows[self.processes.rank])
        return part

    def number(self, value: Any) -> float:
        from torch.distributed.tensor import DTensor

        with self.processes.together():
            return float(value.full_tensor() if isinstance(value, DTensor) else value)

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            with self.processes.together():
                raise
