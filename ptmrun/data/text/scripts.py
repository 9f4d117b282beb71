"""Scripts, as far as scores depend on them."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

JAPANESE, KOREAN, CHINESE = ("HIRAGANA", "KATAKANA"), ("HANGUL",), ("CJK", "BOPOMOFO", "IDEOGRAPHIC")
OTHERS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI")
UNSPACED = {*JAPANESE, *CHINESE, *OTHERS}  # that put no spaces between words
FOREIGN_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
LETTER = re.compile(r"[^\W\d_]")


@functools.lru_cache(maxsize=2**16)
def script(character: str) -> str:
    """The first word of its Unicode name, which of letters is the script; "" of punctuation, numbers and white space."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "").removeprefix("HALFWIDTH ").replace("-", " ").partition(" ")[0]


def counts(texts: Iterable[str]) -> Counter[str]:
    """How many letters, with the marks above and below them, each script has."""
    found: Counter[str] = Counter()
    for character, number in Counter(c for text in texts for c in text).items():
        found[script(character)] += number
    del found[""]
    return found


def share(counts: Counter[str], names: Iterable[str]) -> float:
    """Of all letters, those of these scripts."""
    return sum(counts[name] for name in names) / max(counts.total(), 1)


def apart(text: str) -> str:
    """A text with spaces around every character of a script that has none."""
    return "".join(f" {c} " if script(c) in UNSPACED else c for c in text)


def beyond_ascii(texts: Iterable[str]) -> float:
    """The share of letters that are none of English."""
    foreign = total = 0
    for text in texts:
        foreign += len(FOREIGN_LETTER.findall(text))
        total += len(LETTER.findall(text))
    return foreign / max(total, 1)
