"""The terminal."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console

console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)


@contextlib.contextmanager
def for_programs(wanted: bool) -> Iterator[None]:
    """While a program reads standard output, what is said to people goes to standard error."""
    console.stderr = wanted
    try:
        yield
    finally:
        console.stderr = False


def print_json(document: Any) -> None:
    """One document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
