"""What a step takes with several processes, none of which need be there: measured in one, plus what goes over the wire."""

import math
from dataclasses import dataclass

from torch import nn

BANDWIDTH = 1.25e9  # bytes a second that a process sends, and receives: 10 Gbit/s


@dataclass(frozen=True)
class Step:
    """Of one stage's training: samples and micro-batches of a step, seconds of computing and of making batches in one process,
    and bytes that each of all processes sends."""

    samples: int
    micros: int
    processes: int
    alone: float
    reading: float
    sent: float

    @property
    def computing(self) -> float:
        """Seconds of the process with the most micro-batches."""
        return self.alone * math.ceil(self.micros / self.processes) / self.micros

    @property
    def wire(self) -> float:
        return self.sent / BANDWIDTH

    @property
    def seconds(self) -> float:
        """Nothing overlaps."""
        return self.computing + self.wire

    def stalls(self, section: str) -> list[str]:
        """Where processes would wait, in words."""
        lines = []
        if self.micros < self.processes:
            why = (
                f"a step of {self.samples} samples has {self.micros} micro-batches: {self.processes - self.micros} processes idle"
            )
            lines.append(f"{why}; raise {section}.batch_size and {section}.accumulate")
        elif self.micros % self.processes:
            lines.append(
                f"{self.micros} micro-batches cannot be shared equally, so some wait; make {section}.accumulate a multiple"
            )
        if self.wire > self.computing:
            lines.append(f"the wire takes longer than computing; raise {section}.batch_size, or take fewer processes")
        if self.reading > self.alone / 2:
            lines.append(f"making batches takes {self.reading / self.alone:.0%} of a step; raise device.workers")
        return lines


def sent(model: nn.Module, micros: int, processes: int, shard: bool) -> float:
    """Bytes that each process sends in a step, and as many that it receives, by rings: all gradients are added up once; with
    parts of the weights, for each of its micro-batches, weights are gathered forward and backward, and gradients added up."""
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    if shard:
        every = sum(p.nbytes for p in model.parameters())
        return (processes - 1) / processes * (2 * every + trained) * math.ceil(micros / processes)
    return (processes - 1) / processes * 2 * trained
