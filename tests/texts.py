"""Small texts for tests, and their options."""

from typing import Any

import numpy as np

from ptmrun.batch import Framing
from ptmrun.config import parsing, specs
from ptmrun.config.grammar import compose_raw
from ptmrun.data.sources import TextPart
from ptmrun.data.sources.rows import Row, gathered

END = "<|endoftext|>"
FRAMINGS = {
    "wordpiece": Framing(
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
    ),
    "bpe": Framing(
        {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": "<|pad|>"},
        f"{END} $A {END}",
        f"{END} $A {END} $B {END}",
    ),
    "unigram": Framing(
        {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"},
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
    ),
}
NOUNS = [
    "harbour",
    "engine",
    "garden",
    "letter",
    "captain",
    "window",
    "morning",
    "teacher",
    "river",
    "mountain",
    "silver",
    "basket",
]
VERBS = ["opened", "carried", "followed", "painted", "watched", "repaired", "borrowed", "answered", "crossed", "remembered"]


def sentence(generator: np.random.Generator) -> str:
    a, b, c = generator.choice(NOUNS, 3)
    verb, stop = generator.choice(VERBS), generator.choice([".", "!", "?"])
    return f"The {a} {verb} the {b} of Café {str(c).title()}, {generator.integers(1000)} times{stop}"


def story(documents: int, each: int, seed: int = 0) -> list[str]:
    """Documents of about `each` sentences, one a line."""
    generator = np.random.default_rng(seed)
    return ["\n".join(sentence(generator) for _ in range(each + i % 3)) for i in range(documents)]


def part(documents: list[str]) -> TextPart:
    return gathered({"train": lambda: iter([Row(str(i), d) for i, d in enumerate(documents)])}, "x", None, "strict").parts[
        "train"
    ]


def options(*overrides: str) -> Any:
    """The typed section `dataset`."""
    whole = compose_raw(list(overrides))
    parsing.leave_out_foreign(whole)
    raw = whole["dataset"]
    return specs.section("dataset", raw["name"], "text").model_validate(raw)
