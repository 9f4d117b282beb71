"""Tokens and passwords stay out of run folders: refused in a config, masked in what is written."""

import os
import re
from collections.abc import Iterator
from typing import Any

from ptmrun.errors import UserError

SHAPES = {  # of well-known tokens -> the variable that their owners read
    r"hf_[A-Za-z0-9]{30,}": "HF_TOKEN",
    r"sk-(?=[\w-]*\d)(?=[\w-]*[a-z])(?=[\w-]*[A-Z])[\w-]{20,}": "OPENAI_API_KEY",
    r"gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{22,}": "GITHUB_TOKEN",
    r"glpat-[\w-]{20,}": "GITLAB_TOKEN",
    r"(?:AKIA|ASIA)[A-Z0-9]{16}": "AWS_ACCESS_KEY_ID",
    r"xox[abeoprs]-[\w-]{10,}": "SLACK_TOKEN",
    r"AIza[\w-]{35}": "GOOGLE_API_KEY",
    r"Bearer\s+[\w.~+/=-]{16,}": "a variable of your own",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----": "a variable of your own",
    r"[a-z][a-z0-9+.-]*://[^/\s:@]+:[^/\s@]+@": "a variable of your own",
}
NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
ABOUT_FILES = re.compile(r"(FILE|PATH|DIR|FOLDER|HOME)$", re.IGNORECASE)
KINDS = ("[a-z]", "[A-Z]", "[0-9]", "[^a-zA-Z0-9]")
MASK = "***"


def refuse(raw: Any) -> None:
    """Raises UserError, one line a key and without the value, when a text of a nested config holds what looks like a secret."""
    names = environment()
    secret, lines = pattern(names), []
    for key, text in leaves(raw):
        if match := secret.search(text):
            shaped = [name for shape, name in SHAPES.items() if re.fullmatch(shape, match[0])]
            where = names.get(match[0]) or shaped[0]
            lines.append(
                f"{key}: holds what looks like a secret; it would be saved in the run folder; "
                f"put it in the environment instead ({where})"
            )
    if lines:
        raise UserError(*lines)


def masked(value: Any) -> Any:
    """Text, or nested lists and dicts with text, without the values of secret environment variables and well-known tokens."""
    secret = pattern(environment())

    def mask(part: Any) -> Any:
        if isinstance(part, str):
            return secret.sub(MASK, part)
        if isinstance(part, dict):
            return {mask(k): mask(v) for k, v in part.items()}
        return [mask(v) for v in part] if isinstance(part, (list, tuple)) else part

    return mask(value)


def pattern(names: dict[str, str]) -> re.Pattern:
    """Of the values of secret variables, as whole words, and of well-known tokens."""
    values = [rf"{re.escape(value)}(?![A-Za-z0-9])" for value in sorted(names, key=len, reverse=True)]
    return re.compile("|".join(rf"(?<![A-Za-z0-9])(?:{x})" for x in [*values, *SHAPES]))


def environment() -> dict[str, str]:
    """{value: name} of the environment's secrets: by their names, and long and mixed enough to mean nothing else."""
    return {v: k for k, v in os.environ.items() if NAME.search(k) and not ABOUT_FILES.search(k) and opaque(v)}


def opaque(value: str) -> bool:
    """No path, number or word: at least 8 characters of two kinds (lower, upper, digits, others), or 16 of one."""
    top = "/" + value.split("/")[1] if value.startswith("/") else value.split("/")[0]
    if len(value) < 8 or os.path.exists(value) or ("/" in value and top != "/" and os.path.exists(os.path.expanduser(top))):
        return False
    return len(value) >= 16 or sum(bool(re.search(kind, value)) for kind in KINDS) > 1


def leaves(raw: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in nested dicts and lists."""
    if isinstance(raw, str):
        yield key, raw
    elif isinstance(raw, dict):
        for name, value in raw.items():
            yield from leaves(value, f"{key}.{name}".strip("."))
    elif isinstance(raw, list):
        for value in raw:
            yield from leaves(value, key)
