"""Whether this process is one of several, which torchrun or the main process of a run has started."""

import os

MEETING = "PTMRUN_MEETING"  # in the environment of processes that the main one of a run starts: the folder where they meet


def launched() -> int | None:
    """How many processes torchrun has started, or the main process of a run; None in a process of neither."""
    known = {"RANK", "WORLD_SIZE"} <= os.environ.keys() and {"MASTER_ADDR", MEETING} & os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if known else None


def follows() -> bool:
    """Whether this process is one of several, and not the main one."""
    return launched() is not None and os.environ["RANK"] != "0"
