"""Strings -> what a text encoder takes."""

from typing import Any

import torch

from ptmrun import rng
from ptmrun.batch import TextSpec, Tokens
from ptmrun.data import modality
from ptmrun.data.modality import Unreadable
from ptmrun.data.text.split import TextSplit, frames, padded
from ptmrun.errors import UserError


class TextProcessor(modality.Processor):
    """Tokens of at most `length` a text, by a tokenizer.Tokenizer. pairs: it is pairs of texts that are classified."""

    samples = Tokens

    def __init__(self, tokenizer: Any, length: int, device: torch.device, pairs: bool = False):
        self.tokenizer, self.length, self.device, self.pairs = tokenizer, length, device, pairs
        tokenizer.limit(length)

    def __call__(self, samples: Tokens) -> Tokens:
        return samples.to(self.device)

    def read(self, raw: list[str]) -> Tokens:
        return padded(*frames(raw, None, self.tokenizer, self.length), self.tokenizer.vocabulary.pad)

    def opened(self, raw: list[Any]) -> list[Any]:
        """Texts, pairs of texts (tuples) or lists of words, as they are. Unreadable where one is no text, or empty."""
        return [fault(x) or x for x in raw]

    def split(self, raw: list[Any]) -> TextSplit:
        """Of texts, or where the run has pairs of tuples of two."""
        wanted = "a pair of texts, (first, second)" if self.pairs else "a text"
        if strange := [x for x in raw if not (isinstance(x, tuple) and len(x) == 2 if self.pairs else isinstance(x, str))]:
            raise UserError(f"{str(strange[0])[:60]}: expected {wanted}, as in the training of this run")
        firsts, seconds = ([x[i] for x in raw] if self.pairs else raw for i in (0, 1))
        others = seconds if self.pairs else None
        ids, types = frames(firsts, others, self.tokenizer, self.length)
        return TextSplit(ids, types, firsts, self.tokenizer.vocabulary.pad, torch.arange(len(raw)), None, seconds=others)

    def noise(self, count: int) -> Tokens:
        numbers = torch.randint(
            0, len(self.tokenizer.vocabulary.special), (count, self.length), generator=rng.generator(0, "noise")
        )
        return self.read([self.tokenizer.decode(row) for row in numbers.tolist()])

    @property
    def spec(self) -> TextSpec:
        return TextSpec(self.tokenizer.vocabulary, self.length)

    @property
    def preprocessing(self) -> tuple[Any]:
        return (self.tokenizer,)


def fault(raw: Any) -> Unreadable | None:
    """What is wrong with a text, or with one of several."""
    parts = [raw] if isinstance(raw, str) else raw
    if not isinstance(parts, tuple | list) or not all(isinstance(part, str) for part in parts):
        return Unreadable(f"expected text, found {type(raw).__name__}")
    if not parts or not all(part.strip() for part in parts):
        return Unreadable("is empty")
    if any("\0" in part for part in parts):
        return Unreadable("holds NUL (\\u0000), so this is no text")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        return Unreadable("half a surrogate pair (\\ud800 ...)")
    return None
