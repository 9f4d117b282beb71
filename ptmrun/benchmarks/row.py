"""One measured number with its goal, and the document that all of them make."""

import os
import statistics
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import ptmrun
from ptmrun.runs.provenance import hardware

PACKAGES = ("torch", "transformers", "numpy")
BUSY = 0.5  # processes that compute beside this one, on average, from which on the machine is called busy


@dataclass(frozen=True)
class Row:
    """values: of each pair the two sides, whose ratio counts, or one value alone; in `unit`. most, least: the goal of the median,
    where there is one. reason: why there are no values."""

    part: str
    name: str
    unit: str = ""
    values: list[list[float]] = field(default_factory=list)
    most: float | None = None
    least: float | None = None
    reason: str = ""

    @property
    def each(self) -> list[float]:
        return [value[0] / value[1] if len(value) == 2 else value[0] for value in self.values]

    @property
    def goal(self) -> str:
        if self.most is None and self.least is None:
            return "no goal"
        return f"<= {self.most:.3g}" if self.most is not None else f">= {self.least:.3g}"

    @property
    def verdict(self) -> str:
        if self.reason:
            return f"not run: {self.reason}"
        if self.goal == "no goal":
            return self.goal
        median = statistics.median(self.each)
        reached = median <= self.most if self.most is not None else median >= (self.least or 0.0)
        return "reached" if reached else "missed"

    def __str__(self) -> str:
        """A line: the median, its range, and of a ratio the medians of both sides."""
        if self.reason:
            return f"{self.part:<9} {self.name}: {self.verdict}"
        sides = " / ".join(f"{statistics.median(side):.3g}" for side in zip(*self.values, strict=True))
        of = f" of {sides} {self.unit}" if len(self.values[0]) == 2 else f" {self.unit}"
        told = self.verdict if self.verdict == "no goal" else f"{self.goal} {self.verdict}"
        spread = f"({min(self.each):.3f} to {max(self.each):.3f})"
        return f"{self.part:<9} {self.name:<62} {statistics.median(self.each):>6.3f} {spread}{of}; {told}"

    def document(self) -> dict[str, Any]:
        """For JSON: its fields, and what follows from them."""
        each = self.each
        summary = {"median": statistics.median(each), "min": min(each), "max": max(each)} if each else {}
        return {**asdict(self), **summary, "goal": self.goal, "verdict": self.verdict}


def load() -> float:
    """Processes that computed or wanted to, on average in the last minute."""
    return os.getloadavg()[0]


def document(rows: list[Row], load_before: float) -> dict[str, Any]:
    """All rows and what they depend on."""
    return {
        "ptmrun": ptmrun.__version__,
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": hardware(),
        "threads": 1,
        "load": [load_before, load()],
        "rows": [row.document() for row in rows],
    }
