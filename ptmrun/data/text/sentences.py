"""Where sentences end, and documents cut into them."""

import re
from collections.abc import Iterator
from itertools import pairwise

NO_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\b[DM]r\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bSt\.)"  # initials and titles
STOP = re.compile(
    r"[.!?]" + NO_ABBREVIATION + r"""["'”’»)\]]*(?=\s+["'“‘«(\[]?([^\W\d_]))"""
)  # a sentence's end; the letter that follows
CUT = 2  # version of how documents are cut into pieces
SENTENCE, LONGEST = 500, 10_000  # characters of a sentence over several lines, and of a piece
LINE = re.compile(r"[^\n]+\n*|\n+")
LINE_END = re.compile(r"[^\S\n]*\n")
BREAK = re.compile(r"(?<=\S)\s*?\n\s*\n")  # between paragraphs
CLOSING = "\"'”’»)]"
ENDS = set(".!?…。！？")  # of sentences


def ends(prose: str) -> list[int]:
    """Where the sentences of prose end, at . ! ? before a capital letter; the last one left out."""
    return [match.end() for match in STOP.finditer(prose) if match[1].isupper()]


def pieces(document: str) -> list[str]:
    """The sentences of a document with all that stands between them, so that together they are the document.

    Its lines, or, where most sentences end inside of these, as in text that is broken to a width, what lies between the
    ends of sentences and of paragraphs, of tables and the like lines too. What is longer than LONGEST is cut at a space, or
    anywhere.
    """
    parts, stops = LINE.findall(document), ends(document)
    inside = sum(LINE_END.match(document, stop) is None for stop in stops)
    if len(parts) == 1 or 2 * inside > len(stops):
        breaks = [match.start() for match in BREAK.finditer(document)]
        sentences = (document[a:b] for a, b in pairwise(sorted({0, *stops, *breaks, len(document)})))
        parts = [part for piece in sentences for part in (LINE.findall(piece) if len(piece) > SENTENCE else [piece])]
    if all(len(part) <= LONGEST for part in parts):
        return parts
    return [short for part in parts for short in shortened(part)]


def shortened(part: str) -> Iterator[str]:
    start = 0
    while len(part) - start > LONGEST:
        stop = max(part.rfind(" ", start + 1, start + LONGEST), part.rfind("\n", start + 1, start + LONGEST))
        stop = stop if stop > start else start + LONGEST
        yield part[start:stop]
        start = stop
    yield part[start:]


def stops(text: str) -> bool:
    """Whether a token is a full stop, perhaps with closing quotation marks."""
    bare = text.rstrip(CLOSING)
    return bool(bare) and set(bare) <= ENDS
