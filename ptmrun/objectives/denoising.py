"""Denoising of text (BART, Lewis et al. 2020, arXiv:1910.13461): sentences are shuffled, spans replaced by one mask token each,
and the decoder writes the original.

It asks the encoder for `decoded(source, target)`, `logits(hidden)`, `vocabulary` and `length`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.batch import Tokens
from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.rng import BatchRandom

TAIL = 1e-7  # of the lengths' probability; longer spans are not drawn


class Objective(base.Objective):
    """`options`: infill (share of the tokens that spans cover), span (their mean length), shuffle (sentences).

    It has no heads of its own: the logits belong to the library's model.
    """

    initial_within = 3.0  # a decoder that copies at first gives 1.4 to 2.5 times the initial loss

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        assert encoder.vocabulary.mask is not None, "the model's framing has a mask token"
        self.encoder, self.infill, self.shuffle = encoder, options.infill, options.shuffle
        self.special: Tensor
        self.stops: Tensor
        self.continues: Tensor
        self.lengths: Tensor
        for name in ("special", "stops", "continues"):
            self.register_buffer(name, getattr(encoder.vocabulary, name), persistent=False)
        self.register_buffer("lengths", poisson(options.span), persistent=False)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens), rows. The loss is the cross-entropy in nats a token of the original, special ones included;
        beside it, how many were the likeliest."""
        target = batch["inputs"]
        source = self.corrupted(target, batch["rows"])
        logits = self.encoder.logits(self.encoder.decoded(source, target)[target.mask])
        wanted = target.ids[target.mask]
        right = (logits.argmax(-1) == wanted).sum()
        return Loss(F.cross_entropy(logits, wanted, reduction="sum"), len(wanted)), {"accuracy": Loss(right, len(wanted))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        return math.log(self.encoder.vocabulary.size)

    def corrupted(self, tokens: Tokens, rows: BatchRandom) -> Tokens:
        """What the encoder reads, [B, T] as the original; special tokens are all there, in their order."""
        return self.infilled(self.shuffled(tokens, rows) if self.shuffle else tokens, rows)

    def shuffled(self, tokens: Tokens, rows: BatchRandom) -> Tokens:
        """With the sentences between two special tokens in random order; special tokens stay where they are.

        A sentence ends with a stop, unless the next token is one too or goes on with its word ("3.14", a closing quote).
        """
        ids, mask = tokens.ids, tokens.mask
        special = self.special[ids] & mask
        ends = self.stops[ids[:, :-1]] & ~self.stops[ids[:, 1:]] & ~self.continues[ids[:, 1:]]
        sentence = (F.pad(ends, (1, 0)) | special | F.pad(special[:, :-1], (1, 0))).cumsum(1)
        noise = rows.uniform("sentences", self.encoder.length + 1).to(ids.device).gather(1, sentence)
        place = special.cumsum(1) + noise.masked_fill(special, 0.0)  # special tokens count the parts between them
        order = place.masked_fill(~mask, math.inf).argsort(dim=1, stable=True)
        return tokens._replace(ids=ids.gather(1, order))

    def infilled(self, tokens: Tokens, rows: BatchRandom) -> Tokens:
        """With one mask token for each span of text. The spans have Poisson lengths, 0 too, and together cover exactly the share
        `infill` of the text (the last is cut); kept tokens and spans stand in any order with the same probability.

        A span may go on behind a special token that stands between documents, which then follows the mask token. Of documents
        apart it ends there, and somewhat less than the share is covered.
        """
        ids, device = tokens.ids, tokens.ids.device
        text = tokens.mask & ~self.special[ids]
        count, rank = text.sum(1, keepdim=True), text.cumsum(1) - 1
        starts, lengths = self.spans(count, rows)  # [B, K], in tokens of text; count + 1 and 0 where there is no span
        length = ids.shape[1]
        where = torch.arange(length, device=device).expand_as(ids)
        placed = where.masked_fill(~text, length).sort(1).values  # places of the text's tokens
        begun = placed.gather(1, starts.clamp(max=length - 1)).clamp(max=length - 1)  # and of the spans' first ones
        if tokens.documents is not None:
            of_text = tokens.documents.gather(1, placed.clamp(max=length - 1)).masked_fill(placed == length, length)
            ends = torch.searchsorted(of_text, tokens.documents.gather(1, begun), right=True)
            lengths = torch.where(starts < count, lengths.minimum(ends - starts), lengths)

        edges = torch.zeros(len(ids), self.encoder.length + 2, dtype=torch.long, device=device)
        edges.scatter_add_(1, starts, (lengths > 0).long()).scatter_add_(1, starts + lengths, -(lengths > 0).long())
        covered = text & (edges.cumsum(1).gather(1, rank.clamp(min=0)) > 0)

        # Each mask token goes in front of the first token of its span; one at the very end goes behind the last of the text.
        last = where.masked_fill(~text, -1).amax(1, keepdim=True)
        front = torch.where(starts < count, begun, last + 1) - 0.5
        front = front.masked_fill(starts > count, math.inf)
        kept = where.float().masked_fill(covered | ~tokens.mask, math.inf)
        place, order = torch.cat([kept, front], 1).sort(dim=1, stable=True)
        masks = torch.full_like(starts, self.encoder.vocabulary.mask)
        shortened, there = torch.cat([ids, masks], 1).gather(1, order[:, :length]), place[:, :length].isfinite()
        documents = None
        if tokens.documents is not None:
            own = tokens.documents.gather(1, torch.where(starts < count, begun, last.clamp(min=0)))
            documents = torch.cat([tokens.documents, own], 1).gather(1, order[:, :length])
        return Tokens(shortened.masked_fill(~there, self.encoder.vocabulary.pad), there, torch.zeros_like(ids), documents)

    def spans(self, count: Tensor, rows: BatchRandom) -> tuple[Tensor, Tensor]:
        """Where spans start in texts of `count` [B, 1] tokens, and how long they are: [B, K] twice, in order of their starts;
        count + 1 and 0 where there is no span."""
        length, device = self.encoder.length, count.device
        most = max(1, round(self.infill * length))  # spans, when each is one token
        budget = (self.infill * count).round().long()
        drawn = torch.bucketize(rows.uniform("lengths", most).to(device), self.lengths, right=True)
        before = drawn.cumsum(1) - drawn
        lengths = drawn.minimum((budget - before).clamp(min=0))
        empty = (drawn == 0) & (before < budget)  # as many of these as make the text no longer than it was
        room = lengths.sum(1, keepdim=True) - (lengths > 0).sum(1, keepdim=True)
        wanted = (lengths > 0) | (empty & (empty.cumsum(1) <= room))
        lengths = lengths.gather(1, (~wanted).byte().argsort(dim=1, stable=True))  # those that are not wanted behind the others
        number = wanted.sum(1, keepdim=True)
        items = count - lengths.sum(1, keepdim=True) + number  # kept tokens and spans: `number` of them at random are spans
        noise = rows.uniform("spans", length).to(device)
        noise = noise.masked_fill(torch.arange(length, device=device) >= items, math.inf)
        nth = torch.arange(most, device=device)
        chosen = noise.argsort(dim=1, stable=True)[:, :most].masked_fill(nth >= number, length).sort(1).values
        starts = chosen - nth + lengths.cumsum(1) - lengths  # kept tokens and those of spans before it
        return starts.where(nth < number, count + 1), lengths


def poisson(mean: float) -> Tensor:
    """Cumulative probabilities of 0, 1, 2 ... but for the last TAIL of them, [n] float32."""
    totals, term, k = [], math.exp(-mean), 0
    total = term
    while total < 1 - TAIL:
        totals.append(total)
        k += 1
        term *= mean / k
        total += term
    return torch.tensor(totals)
