"""`ptmrun help WORD`: a group, a choice, a verb or a key."""

import textwrap
from collections.abc import Iterable

from ptmrun.commands import table
from ptmrun.commands.screens import WIDTH, screen
from ptmrun.config import choices, compatibility, keys, parsing
from ptmrun.errors import UserError, nearest

FITTED = ("task", "finetune", "downstream", "dataset")  # groups whose choices fit some models only


def command(call: table.Call) -> int:
    words = [word for text in [*call.names, *call.settings] for word in text.split("=", 1)]
    print(screen() if not words else explained(words))
    return 0


def explained(words: list[str]) -> str:
    """What one word names, or a group and its choice. Raises UserError where that is nothing."""
    if len(words) == 2 and words[0] in choices.GROUPS:
        group, name = words
        if name not in choices.names(group):
            raise UserError(choices.no_such(group, name))
        return choice(group, name)
    if len(words) != 1:
        raise UserError("help: expected one word, a group, choice, verb or key, as in: ptmrun help vit")
    [word] = words
    if word in table.VERBS:
        return verb(word)
    if word in choices.GROUPS:
        return group_of(word)
    if section := [line(key) for key in keys.common() if key.name.startswith(f"{word}.")]:
        return "\n".join([f"{word}.", "", *section])
    parts = [choice(group, word) for group in choices.GROUPS if word in choices.names(group)]
    everything = known()
    wanted = [name for name in everything if name == word]
    if not parts and not wanted:
        wanted = [name for name in everything if name.endswith(f".{word}")]
    parts += [key_alone(key, owner) for name in wanted for key, owner in everything[name]]
    if not parts:
        names = {*table.VERBS, *choices.GROUPS, *everything, *(name.split(".")[-1] for name in everything)}
        near = nearest(word, names.union(*map(choices.names, choices.GROUPS)))
        raise UserError(f"help {word}: no group, choice, verb or key of this name{near if 'did you mean' in near else ''}")
    return "\n\n".join(parts)


def known() -> dict[str, list[tuple[keys.Key, str]]]:
    """All keys that there are: {dotted name: [(key, the choice that it belongs to)]}, "" for those that every run has."""
    result: dict[str, list[tuple[keys.Key, str]]] = {key.name: [(key, "")] for key in keys.common()}
    for group in choices.GROUPS:
        for name in choices.names(group):
            for key in keys.own(group, name):
                result.setdefault(key.name, []).append((key, f"{group}={name}"))
    return result


def verb(name: str) -> str:
    """How a verb is typed, and its settings."""
    known_verb = table.VERBS[name]
    lines = [f"ptmrun {name} {known_verb.usage}", "", *textwrap.wrap(known_verb.what, WIDTH)]
    lines += ["", f"As in: ptmrun {known_verb.example}"]
    own = settings.model_fields.items() if (settings := known_verb.own()) else ()
    lines += [f"  {key}={parsing.shown(field.default)}" for key, field in own]
    return "\n".join([*lines, *(f"  {flag}" for flag in known_verb.flags)])


def group_of(group: str) -> str:
    """The choices of a group, a line each, and the keys that all of them have."""
    lines = [f"{group}= one of", ""]
    lines += [f"  {name:<20} {choices.summary(group, name)}" for name in choices.names(group)]
    shared = [key for key in keys.common() if key.name.startswith(f"{group}.")]
    lines += ["", "Keys of all of them", *map(line, shared)] if shared else []
    first = choices.names(group)[0]
    return "\n".join([*lines, "", f"ptmrun help {first} explains one, with its own keys"])


def choice(group: str, name: str) -> str:
    """What a choice is, its keys, what it sets, and what it goes with."""
    parts = [[f"{group}={name}", *textwrap.wrap(choices.summary(group, name), WIDTH)]]
    if own := keys.own(group, name):
        parts.append(["Keys", *map(line, own)])
    if changed := keys.settings(group, name):
        parts.append(["Sets (what you type wins)", *wrapped(f"{key}={value}" for key, value in changed.items())])
    if fits := goes_with(group, name):
        parts.append(["Goes with", *(text for key, names in fits.items() for text in wrapped([f"{key}= {', '.join(names)}"]))])
    if any(key.name.startswith(f"{group}.") for key in keys.common()):
        parts.append([f"ptmrun help {group} has the keys of all its choices"])
    return "\n\n".join("\n".join(part) for part in parts)


def goes_with(group: str, name: str) -> dict[str, list[str]]:
    """{another group: its choices that a choice fits}, with data that both work on."""
    others = {"model": ("task", "finetune", "downstream", "dataset")} | dict.fromkeys(FITTED, ("model",))
    return {other: [x for x in choices.names(other) if fits({group: name, other: x})] for other in others.get(group, ())}


def fits(chosen: dict[str, str]) -> bool:
    data = [chosen["dataset"]] if "dataset" in chosen else choices.names("dataset")
    return any(not compatibility.incompatible({**chosen, "dataset": name}) for name in data)


def key_alone(key: keys.Key, owner: str = "") -> str:
    """A key with all that there is to say of it."""
    lines = [key.name + (f" (of {owner})" if owner else ""), f"  type     {key.type}", f"  default  {key.default}"]
    lines += textwrap.wrap(key.meaning, WIDTH, initial_indent="  meaning  ", subsequent_indent=" " * 11)
    others = [] if owner else [f"{value} ({', '.join(names)})" for value, names in by_value(key.name).items()]
    return "\n".join([*lines, *textwrap.wrap("; ".join(others), WIDTH, initial_indent="  set to   ", subsequent_indent=" " * 11)])


def by_value(key: str) -> dict[str, list[str]]:
    """{value: the choices that set a key to it}"""
    result: dict[str, list[str]] = {}
    for chosen, value in keys.setters(key):
        result.setdefault(value, []).append(chosen)
    return result


def line(key: keys.Key) -> str:
    """A key in a list."""
    first = f"  {key.name}={key.default}"
    meaning = textwrap.wrap(key.meaning, WIDTH - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([f"{first:<40} [{key.type}]", *meaning])


def wrapped(texts: Iterable[str]) -> list[str]:
    return textwrap.wrap("  ".join(texts), WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
