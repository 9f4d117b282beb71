"""SIGINT and SIGTERM ask for a stop at the next step; a second one stops at once."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Stop:
    """`pending()` is the signal that was received, or None."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def pending(self) -> int | None:
        return self.signum

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        before = {s: signal.signal(s, self.receive) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
