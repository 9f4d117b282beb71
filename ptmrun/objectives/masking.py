"""Which tokens masked language modelling hides, and what stands in their place (Devlin et al. 2019, arXiv:1810.04805).

With `whole_word` the pieces of a word are hidden together; with `spans`, runs of words (or tokens) are, as in SpanBERT (Joshi et
al. 2020, arXiv:1907.10529, section 3.1).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptmrun.batch import Tokens, Vocabulary
from ptmrun.errors import UserError
from ptmrun.rng import BatchRandom

P, LONGEST = 0.2, 10  # of the geometric distribution of span lengths, which ends there; the mean is 3.8


class Masked(NamedTuple):
    """What the encoder gets to see."""

    tokens: Tokens
    hidden: Tensor  # [B, T] bool: to be predicted


class Masking(nn.Module):
    """`options`: ratio, replaced, kept, whole_word, spans."""

    special: Tensor
    continues: Tensor
    ordinary: Tensor
    lengths: Tensor

    def __init__(self, vocabulary: Vocabulary, length: int, options: Any):
        super().__init__()
        if options.replaced + options.kept > 1:
            total = f"task.replaced={options.replaced:g} and task.kept={options.kept:g}"
            raise UserError(f"{total}: expected at most 1 together; they are shares of the hidden tokens")
        assert vocabulary.mask is not None, "the model's framing has a mask token"
        self.options, self.length, self.mask = options, length, vocabulary.mask
        self.register_buffer("special", vocabulary.special, persistent=False)
        self.register_buffer("continues", vocabulary.continues, persistent=False)
        self.register_buffer("ordinary", (~vocabulary.special).nonzero().squeeze(1), persistent=False)
        chances = P * (1 - P) ** torch.arange(LONGEST)
        self.register_buffer("lengths", (chances / chances.sum()).cumsum(0)[:-1], persistent=False)

    def forward(self, tokens: Tokens, rows: BatchRandom) -> Masked:
        """A function of the texts and of the random numbers of their rows: not of the padding, nor of the other rows.

        In each text, tokens are taken in random order (whole words, spans) until `ratio` of those that are not special are
        hidden; what would exceed that is taken with the probability that makes it right on average, and the first in any case.
        A hidden token becomes the mask token, with probability `replaced` any token that is not special, with `kept` it stays;
        spans share that choice.
        """
        ids, width = tokens.ids, tokens.ids.shape[1]
        text = tokens.mask & ~self.special[ids]
        place = torch.arange(width, device=ids.device).expand_as(ids)
        before = nn.functional.pad(text[:, :-1], (1, 0))
        first = text & ~(self.continues[ids] & before) if self.options.whole_word else text  # of a word
        begins = first
        if self.options.spans:
            ends = (1 + torch.searchsorted(self.lengths, self.noise("spans", tokens, rows), right=True)).cumsum(1)
            run = torch.searchsorted(ends, first.cumsum(1) - 1, right=True)
            begins = first & ((run != nn.functional.pad(run[:, :-1], (1, 0), value=-1)) | ~before)  # none beyond a special token
        unit = (begins.cumsum(1) - 1).clamp(min=0)

        order = torch.where(text, self.noise("order", tokens, rows).gather(1, unit), 2.0).argsort(dim=1, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, place)
        start = torch.where(first, place, 0).cummax(1).values  # of the token's word
        size = torch.zeros_like(rank).scatter_add_(1, start, text.long()).gather(1, start)
        rank = rank.gather(1, start)
        wanted = self.options.ratio * text.sum(1, keepdim=True)
        share = rows.uniform("mask/share", 1).to(ids.device)
        hidden = text & ((rank + share * size < wanted) | (rank == 0))

        kind = self.noise("kind", tokens, rows)
        if self.options.spans:
            kind = kind.gather(1, unit)
        other = (self.noise("replaced", tokens, rows) * len(self.ordinary)).long().clamp(max=len(self.ordinary) - 1)
        shown = torch.where(kind < self.options.replaced, self.ordinary[other], self.mask)
        shown = torch.where(kind >= 1 - self.options.kept, ids, shown)
        return Masked(tokens._replace(ids=torch.where(hidden, shown, ids)), hidden)

    def noise(self, purpose: str, tokens: Tokens, rows: BatchRandom) -> Tensor:
        """[B, T]. Drawn for the longest text that there may be, so that padding changes nothing."""
        whole = rows.uniform(f"mask/{purpose}", self.length)
        return whole[:, : tokens.ids.shape[1]].contiguous().to(tokens.ids.device)


def filled(encoder: Any, masking: Masking, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Which tokens are hidden, [B, T] bool, and the sequences with the likeliest ones in their place, [B, T]."""
    shown, hidden = masking(batch["inputs"], batch["rows"])
    guessed = encoder.logits(encoder.hidden(shown)[hidden]).argmax(-1)
    return hidden, batch["inputs"].ids.masked_scatter(hidden, guessed)
