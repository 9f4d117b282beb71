"""The terminal."""

import sys

from rich.console import Console

console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
