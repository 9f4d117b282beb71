"""What can go wrong and is the user's to mend: one clear line, exit code 2. Everything else is a bug and shows a traceback."""

import difflib
import errno
import re
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input or the environment; each argument is one line for the user."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Misfit(UserError):
    """Choices that are right alone and do not fit together; nothing else is wrong."""


class Interrupted(Exception):
    """SIGINT or SIGTERM asked for a stop; the state is saved. `signum` gives the exit code 128 + signum."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum


NO_MEMORY = re.compile(  # as C libraries, PyTorch, the dynamic linker and its data loader say it
    r"cannot allocate memory|can't allocate memory|out of memory|failed to map segment|can't start new thread|bad_alloc|"
    r"unable to allocate|DataLoader worker.*(Killed|Bus error)",
    re.IGNORECASE,
)
LESS_MEMORY = (
    "smaller batches (pretrain.batch_size, or .accumulate=4 for the same in parts), device.workers=0 or a smaller model need less"
)


def out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, whichever library says so and however."""
    if isinstance(error, UserError) or not isinstance(error, MemoryError | OSError | RuntimeError | ImportError):
        return False
    return isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or bool(NO_MEMORY.search(str(error)))


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean X?)`, or the whole list when nothing is near."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else f"; there is: {', '.join(names)}" if names else ""


def printable(text: str) -> str:
    """Control characters, which could steer a terminal, as escapes: what is printed may come from a stranger's file."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
