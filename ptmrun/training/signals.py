"""SIGINT and SIGTERM ask for a stop at the next step; one more, at least a second later, stops at once.

(A terminal and a sweep may both deliver the same Ctrl-C.)
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from ptmrun.errors import Interrupted


class Stop:
    """`pending()` is the signal that was received, or None; `then` is called when it is."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.signum: int | None = None
        self.since = 0.0
        self.then = then

    def pending(self) -> int | None:
        return self.signum

    def receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None:
            self.signum, self.since = signum, time.monotonic()
            self.then()
        elif time.monotonic() - self.since > 1:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        before = {s: signal.signal(s, self.receive) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def check_stop(stop: Stop) -> None:
    """Raises Interrupted when a signal is pending."""
    if signum := stop.pending():
        raise Interrupted(signum)
