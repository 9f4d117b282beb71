"""Tokens and passwords stay out of run folders: refused in a config, masked in what is written."""

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

from ptmrun.errors import UserError

OWN = "a variable of your own"
MIXED = r"(?=[\w-]{0,200}\d)(?=[\w-]{0,200}[a-z])(?=[\w-]{0,200}[A-Z])[\w-]"  # of a word with digits, small and capital letters
QUERY = (  # names in the query of an address, alone or as the last word of one: ?api_key=, &X-Amz-Signature=
    r"key|(?:[\w-]{0,40}[_-])?(?:api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|token|secret|passw(?:or)?d|pwd|sig|signature|"
    r"credentials?|auth|authorization|jwt)"
)
# of well-known tokens, as the plug-ins of detect-secrets 1.5 and the documents of those who give them out have them -> (what a
# text must hold, in small letters, to be looked at; the variable that their owners read)
SHAPES = {
    r"hf_[A-Za-z0-9]{30,}": ("hf_", "HF_TOKEN"),
    r"api_org_[A-Za-z0-9]{30,}": ("api_org_", "HF_TOKEN"),
    rf"sk-{MIXED}{{20,}}": ("sk-", "OPENAI_API_KEY"),
    r"gh[pousr]_[A-Za-z0-9]{30,}": ("gh", "GITHUB_TOKEN"),
    r"github_pat_\w{22,}": ("github_pat_", "GITHUB_TOKEN"),
    r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat)-[\w-]{20,}": ("gl", "GITLAB_TOKEN"),
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}": ("a", "AWS_ACCESS_KEY_ID"),
    r"xox[abeoprs]-[\w-]{10,}|xapp-\d-[\w-]{10,}": ("x", "SLACK_TOKEN"),
    r"hooks\.slack\.com/services/[\w/]{20,}": ("hooks.slack", "SLACK_TOKEN"),
    r"AIza[\w-]{35}": ("aiza", "GOOGLE_API_KEY"),
    r"ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}": ("", "GOOGLE_API_KEY"),
    rf"pypi-{MIXED}{{16,}}": ("pypi-", "TWINE_PASSWORD"),
    r"npm_[A-Za-z0-9]{36}": ("npm_", "NPM_TOKEN"),
    r"eyJ[\w-]{8,1000}={0,2}\.[\w-]{4,8000}={0,2}\.[\w-]*": ("eyj", OWN),  # JSON web tokens
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,}": ("k_", "STRIPE_API_KEY"),
    r"SG\.[\w-]{16,100}\.[\w-]{16,}": ("sg.", "SENDGRID_API_KEY"),
    r"(?:AC|SK)[0-9a-f]{32}": ("", "TWILIO_AUTH_TOKEN"),
    r"[0-9a-f]{32}-us\d{1,2}": ("-us", "MAILCHIMP_API_KEY"),
    r"\d{8,10}:[\w-]{35}": (":", "TELEGRAM_TOKEN"),
    r"[MNO][\w-]{23,25}\.[\w-]{6}\.[\w-]{27,}": (".", "DISCORD_TOKEN"),
    r"sq0(?:atp|csp|idp)-[\w-]{22,}": ("sq0", "SQUARE_ACCESS_TOKEN"),
    r"do[opr]_v1_[0-9a-f]{64}": ("_v1_", "DIGITALOCEAN_TOKEN"),
    r"dapi[0-9a-f]{32}": ("dapi", "DATABRICKS_TOKEN"),
    r"dckr_pat_[\w-]{20,}": ("dckr_pat_", "DOCKER_TOKEN"),
    r"(?:AccountKey|SharedAccessKey)=[\w+/]{30,}={0,2}": ("key=", "AZURE_STORAGE_KEY"),
    rf"(?:r8_|gsk_|wandb_v1_){MIXED}{{24,}}": ("_", OWN),
    rf"(?:nvapi-|pplx-|xai-){MIXED}{{24,}}": ("-", OWN),
    r"(?i:Bearer\s{1,9}[\w.~+/=-]{16,})": ("bearer", OWN),
    r"(?i:Authorization\s{0,9}[:=]\s{0,9}\w{1,40}\s{1,9}[\w.~+/=:-]{8,})": ("authorization", OWN),
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----": ("private key", OWN),
    r"(?i:[a-z][a-z0-9+.-]{0,30}://[^/\s:@]{0,200}:[^/\s@]{1,500}@)": ("://", OWN),  # the user's name may be missing
    r"(?i:https?://(?!git@)[^/\s:@]{1,500}@)": ("://", OWN),
    rf"(?<=[?&;#])(?i:(?:{QUERY})=[^&;#\s]{{4,}})": ("=", OWN),
}
NAME = re.compile(r"TOKEN|KEY|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|(^|_)(AUTH|PASS|PAT|DSN)$", re.IGNORECASE)
ABOUT_FILES = re.compile(r"(FILE|PATH|DIR|FOLDER|HOME)$", re.IGNORECASE)
KINDS = ("[a-z]", "[A-Z]", "[0-9]", "[^a-zA-Z0-9]")
SHORTEST = 9  # characters of an address or a token
MASK = "***"


def refuse(raw: Any) -> None:
    """Raises UserError, one line a key and without the value, when a text of a nested config holds what looks like a secret."""
    names, lines = known(), list[str]()
    for key, text in leaves(raw):
        if (secret := pattern(text, names)) and (match := secret.search(text)):
            shaped = (name for shape, (_, name) in SHAPES.items() if re.fullmatch(shape, match[0]))
            where = names.get(match[0]) or next(shaped, OWN)
            lines.append(
                f"{key}: holds what looks like a secret; it would be saved in the run folder; "
                f"put it in the environment instead ({where})"
            )
    if lines:
        raise UserError(*lines)


def masked(value: Any) -> Any:
    """Text, or nested lists and dicts with text, without the values of secret environment variables and well-known tokens."""
    names = known()

    def mask(part: Any) -> Any:
        if isinstance(part, str):
            secret = pattern(part, names)
            return secret.sub(MASK, part) if secret else part
        if isinstance(part, dict):
            return {mask(k): mask(v) for k, v in part.items()}
        return [mask(v) for v in part] if isinstance(part, (list, tuple)) else part

    return mask(value)


def known() -> dict[str, str]:
    """{value: name} of the environment's secrets."""
    return of_environment(tuple((name, os.environ[name]) for name in os.environ if of_a_secret(name)))


@functools.lru_cache(maxsize=1024)
def of_a_secret(name: str) -> bool:
    """Whether a variable of this name may hold one."""
    return bool(NAME.search(name) and not ABOUT_FILES.search(name))


@functools.lru_cache(maxsize=4)
def of_environment(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {value: name for name, value in variables if opaque(value)}


def pattern(text: str, names: dict[str, str]) -> re.Pattern | None:
    """Of the secrets that a text may hold: values of variables, as whole words, and well-known tokens; mostly None."""
    small = text.lower()
    values = tuple(value for value in sorted(names, key=len, reverse=True) if value in text)
    shapes = tuple(shape for shape, (holds, _) in SHAPES.items() if holds in small) if len(text) >= SHORTEST else ()
    return compiled(values, shapes) if values or shapes else None


@functools.lru_cache(maxsize=256)
def compiled(values: tuple[str, ...], shapes: tuple[str, ...]) -> re.Pattern:
    return re.compile(
        "|".join(rf"(?<![A-Za-z0-9])(?:{x})" for x in [*(rf"{re.escape(v)}(?![A-Za-z0-9])" for v in values), *shapes])
    )


def opaque(value: str) -> bool:
    """Whether a value is long and mixed enough to mean nothing else: no path, number or word: at least 8 characters of two kinds
    (lower, upper, digits, others), or 16 of one."""
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
