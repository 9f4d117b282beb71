"""Tagged sentences of one split."""

import functools
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ptmrun.data.text.split import TextSplit

NONE = -100  # the label of a token that is not asked for


@dataclass(kw_only=True)
class Sentences(TextSplit):
    """Sentences of one split; of all of the source: words, tags (numbers [words]) and places (of each word's first sub-word in
    the frame [words], -1 where the model does not see it)."""

    words: list[list[str]]
    tags: list[np.ndarray]
    places: list[np.ndarray]
    classes: list[str]
    bio: bool
    answered = True

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest sentence of the source."""
        return max(map(len, self.ids))

    def sorted_by_length(self) -> tuple[Self, slice]:
        """They stay in order, as the tags of one stand behind those of another."""
        return self, slice(None)

    def answers(self, indices: Tensor) -> Tensor:
        """The tag at the first sub-word of each word and NONE elsewhere: [B, T], T at least that of any batch."""
        rows = self.rows[indices].tolist()
        tags = torch.full((len(rows), self.longest), NONE)
        for line, r in zip(tags, rows, strict=True):
            seen = self.places[r] >= 0
            line[torch.from_numpy(self.places[r][seen])] = torch.from_numpy(self.tags[r][seen])
        return tags
