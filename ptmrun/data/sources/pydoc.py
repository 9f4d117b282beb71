"""The language reference that comes with Python (pydoc_data.topics): real English text of 465,000 characters, no download."""

from collections.abc import Iterator
from typing import Any

from ptmrun.data.sources import TextSource
from ptmrun.data.sources.rows import Row, gathered


def read(options: Any) -> TextSource:
    return gathered({"train": topics}, options.name, None, "strict")


def topics() -> Iterator[Row]:
    """Each topic is a document, in the order of their names."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Row(name, topics[name].strip("\n"))
