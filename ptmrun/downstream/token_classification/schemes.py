"""Tags that mark where names begin: BIO, and what can be read as BIO."""

import re
from collections.abc import Iterable

from ptmrun.downstream.token_classification.columns import Sentence
from ptmrun.errors import UserError, printable

BIO = re.compile(r"O|B|I|[BI]-.+")
LONGER = re.compile(r"O|[BIESLUMW](-.+)?")  # BIOES, BILOU, BMES
AS_BIO = {"S": "B", "U": "B", "W": "B", "E": "I", "L": "I", "M": "I"}
BEFORE, BEHIND = re.compile(r"([BIESLUMWbieslumw])([-_:/])(.+)"), re.compile(r"(.+)([-_:/])([BIESLUMW])")
LISTED = 10  # in a message


def where(part: list[Sentence]) -> Iterable[tuple[str, str]]:
    """(tag, file and line) of every word."""
    return ((tag, f"{s.path}:{line}") for s in part for tag, line in zip(s.tags, s.lines, strict=True))


def tags_of(part: list[Sentence]) -> set[str]:
    return {tag for s in part for tag in s.tags}


def respelled(read: dict[str, list[Sentence]], wanted: str, notes: list[str]) -> dict[str, list[Sentence]]:
    """Tags such as B_PER, PER-B, b-per as B-PER, where all of the training split but O are so and some begin a name; a note on
    it."""
    tags = tags_of(read["train"])
    outside = tags & {"O", "o"}
    for pattern, mark, kind in ((BEFORE, 1, 3), (BEHIND, 3, 1)):
        matches = [pattern.fullmatch(tag) for tag in tags - outside]
        if wanted == "plain" or not outside or not all(matches) or not any(m and m[mark].upper() in "BSUW" for m in matches):
            continue
        spelled = {m[0]: f"{m[mark].upper()}-{m[kind]}" for tag in all_tags(read) if (m := pattern.fullmatch(tag))}
        spelled = {old: new for old, new in (spelled | {"o": "O"}).items() if old != new}
        if example := min(spelled.keys() & tags, default=None):
            said = f"{printable(example)} are read as {printable(spelled[example])}"
            notes.append(f"tags such as {said} (downstream.scheme=plain: as they are)")
            read = {n: [s._replace(tags=[spelled.get(t, t) for t in s.tags]) for s in part] for n, part in read.items()}
        break
    return read


def all_tags(read: dict[str, list[Sentence]]) -> set[str]:
    return set().union(*map(tags_of, read.values()))


def scheme(train: list[Sentence], wanted: str) -> bool:
    """Whether tags are BIO (or BIOES, BILOU, BMES), which mark where names begin, or plain. Raises UserError for a mixture."""
    tags = tags_of(train)
    marked = any(tag == "B" or re.match("[BI]-.", tag) for tag in tags)
    if wanted == "plain" or (wanted == "auto" and not marked):
        return False
    if all(map(LONGER.fullmatch, tags)):
        return True
    if wanted == "auto" and "O" not in tags:
        return False
    tag, place = next((tag, place) for tag, place in where(train) if not LONGER.fullmatch(tag))
    raise UserError(
        f"{place}: the tag {printable(tag)} among BIO tags; expected O, B-kind or I-kind; for plain tags: downstream.scheme=plain"
    )


def kind_of(tag: str) -> str:
    """What stands after the B or I of a BIO tag, with the hyphen; O."""
    return tag if tag == "O" else tag[1:]


def as_bio(part: list[Sentence]) -> list[Sentence]:
    """Tags of LONGER as BIO."""

    def changed(tag: str) -> str:
        return AS_BIO[tag[0]] + tag[1:] if tag[0] in AS_BIO and LONGER.fullmatch(tag) else tag

    return [s._replace(tags=list(map(changed, s.tags))) for s in part]


def refuse_unknown(part: list[Sentence], known: set[str], bio: bool) -> None:
    """Raises UserError for tags that are not known (of BIO tags, for kinds)."""
    lacking = {tag for tag in tags_of(part) if (kind_of(tag) if bio else tag) not in known or (bio and not BIO.fullmatch(tag))}
    if lacking:
        first = {tag: place for tag, place in reversed(list(where(part))) if tag in lacking}
        listed = ", ".join(f"{printable(tag)} ({first[tag]})" for tag in sorted(lacking)[:LISTED])
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        raise UserError(
            f"downstream.root: the training files lack the tags {listed}{more}; rename them or remove their sentences"
        )


def checked(part: list[Sentence], repair: bool) -> tuple[list[Sentence], int]:
    """BIO tags whose names begin with B; how many were made to. Raises UserError for one that does not, unless `repair`."""
    sentences, broken = [], 0
    for s in part:
        tags, before = [], "O"
        for tag, line in zip(s.tags, s.lines, strict=True):
            if tag[0] == "I" and (before == "O" or kind_of(before) != kind_of(tag)):
                begins = f"B{kind_of(tag)}"
                if not repair:
                    raise UserError(
                        f"{s.path}:{line}: {printable(tag)} goes on with no {printable(begins)}; mend it, or set "
                        f"downstream.repair=true to make it {printable(begins)}"
                    )
                tag, broken = begins, broken + 1
            tags.append(tag)
            before = tag
        sentences.append(s._replace(tags=tags))
    return sentences, broken
