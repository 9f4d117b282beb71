"""Progress of a training stage: a live bar on a terminal, a plain line every few seconds elsewhere."""

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ptmrun.runs.console import console
from ptmrun.runs.folder import Run

EVERY = 15.0  # seconds between plain lines


class Bar:
    """with Bar(run, "pretrain", steps) as bar: bar.show(step, values)

    after: how long the rest of the run takes, in times this training; 0: not known."""

    def __init__(self, run: Run, title: str, steps: int, quiet: bool = False, after: float = 0.0):
        self.run, self.title, self.steps, self.quiet, self.after = run, title, steps, quiet, after
        self.text, self.start, self.last = "", time.monotonic(), time.monotonic()
        self.first: int | None = None
        self.live: Progress | None = None

    def __enter__(self) -> "Bar":
        if console.is_terminal and not self.run.silent:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total}"),
            )
            times = (TimeElapsedColumn(), TextColumn("{task.fields[left]}"), TextColumn("{task.fields[text]}"))
            self.live = Progress(*columns, *times, console=console, transient=self.quiet, refresh_per_second=4)
            self.task = self.live.add_task(self.title, total=self.steps, text="", left="")
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def reading(self, title: str, done: int, total: int) -> None:
        """Of work before training, under a title of its own."""
        if self.live:
            self.live.update(self.task, description=title, total=total, completed=done)
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            self.run.say(f"{title}: {done:,} of {total:,}")

    def show(self, step: int, values: dict[str, float]) -> None:
        """Moves to a step; `values` are those of metrics.jsonl, shown until the next ones come."""
        if values:
            self.text = describe(values)
        if self.first is None:
            self.first, self.start = step, time.monotonic()
        now = time.monotonic()
        each = (now - self.start) / max(1, step - self.first)
        left = to_go(each * (self.steps - step), each * self.steps * self.after)
        if self.live:
            self.live.update(self.task, completed=step, text=self.text, left=left if step > self.first else "")
        if values and not self.quiet and (now - self.last >= EVERY or step == self.steps):
            self.last = now
            line = "  ".join([f"{self.title} {step}/{self.steps}", *([left] if step < self.steps else []), self.text])
            if self.live:
                self.run.note(line)
            else:
                self.run.say(line)


def to_go(seconds: float, after: float = 0.0) -> str:
    """In words: "about 40 s to go in this training", and where something follows it "... and 2 min after it"."""
    return f"about {clock(seconds)} to go in this training" + (f" and {clock(after)} after it" if after else "")


def clock(seconds: float) -> str:
    size, unit = (3600, "h") if seconds >= 5400 else (60, "min") if seconds >= 90 else (1, "s")
    return f"{seconds / size:.{int(unit == 'h')}f} {unit}"


def describe(values: dict[str, float]) -> str:
    shown = [f"{name} {values[name]:.4g}" for name in ("loss", "accuracy", "grad_norm", "lr") if name in values]
    return "  ".join([*shown, f"{values['samples_per_s']:.0f} samples/s", f"data-wait {values['data_wait']:.0%}"])
