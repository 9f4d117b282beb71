"""The terminal, and the one place that what came from outside passes on its way there."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from ptmrun.config import secrets
from ptmrun.errors import printable


def shown(text: str) -> str:
    """A text that may come from outside (names of files and classes, ledgers, errors of libraries), as it can be shown: line by
    line, with what could steer a terminal as escapes, and without secrets."""
    return "\n".join(map(printable, secrets.masked(text).split("\n")))


class Screen(Console):
    """Rich's console. Every text passes here: of lines, of cells and titles of tables, of branches of trees."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)


console = Screen(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)


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
    print(json.dumps(secrets.masked(document), indent=2, ensure_ascii=False, allow_nan=False))
