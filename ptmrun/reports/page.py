"""Self-contained pages from templates/: one file that asks for nothing, whose texts are escaped, and whole without scripts."""

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ptmrun.errors import printable

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, /, **values: Any) -> str:
    """The page of a template."""
    return environment().get_template(template).render(**values)


@functools.cache
def environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def shown(value: Any) -> Any:
    """What stands in a page for a value, before it is escaped: texts may come from outside, and steer nothing."""
    if isinstance(value, Markup):
        return value
    text = str(value)
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))
