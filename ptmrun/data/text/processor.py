"""Strings -> what a text encoder takes."""

from typing import Any

import torch

from ptmrun import rng
from ptmrun.batch import TextSpec, Tokens
from ptmrun.data import modality
from ptmrun.data.text.split import padded


class TextProcessor(modality.Processor):
    """Tokens of at most `length` a text, by a tokenizer.Tokenizer."""

    samples = Tokens

    def __init__(self, tokenizer: Any, length: int, device: torch.device):
        self.tokenizer, self.length, self.device = tokenizer, length, device
        tokenizer.limit(length)

    def __call__(self, samples: Tokens) -> Tokens:
        return samples.to(self.device)

    def read(self, raw: list[str]) -> Tokens:
        pairs = [self.tokenizer.frame(ids, None, self.length) for ids in self.tokenizer.encode(raw)]
        return padded([ids for ids, _ in pairs], [types for _, types in pairs], self.tokenizer.vocabulary.pad)

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
