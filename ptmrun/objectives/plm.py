"""Permutation language modelling (XLNet, Yang et al. 2019, arXiv:1906.08237): a sixth of the tokens, each from all others and
from those of the sixth that come before it in a random order.

It asks the encoder for `permuted(tokens, perm_mask, target_mapping)`, `logits(hidden)`, `vocabulary` and `length`.
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


class Objective(base.Objective):
    """`options`: span (most tokens of one), context (one token in so many is a target).

    It has no heads of its own: the logits belong to the library's model.
    """

    fills = True
    initial_within = 1.7  # heads that look at neighbours at first give 1.25 to 1.45 times the initial loss

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.span, self.context = encoder, options.span, options.context
        self.special: Tensor
        self.register_buffer("special", encoder.vocabulary.special, persistent=False)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens), rows. The loss is the cross-entropy in nats a target; beside it, how many are likeliest."""
        logits, where = self.predicted(batch)
        wanted = batch["inputs"].ids[where]
        right = (logits.argmax(-1) == wanted).sum()
        return Loss(F.cross_entropy(logits, wanted, reduction="sum"), len(wanted)), {"accuracy": Loss(right, len(wanted))}

    def predicted(self, batch: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The logits of all targets, [N, V], and where these are: sequence and place, [N] each."""
        tokens = batch["inputs"]
        perm_mask, places, used = self.choose(tokens, batch["rows"])
        mapping = F.one_hot(places, tokens.ids.shape[1])
        logits = self.encoder.logits(self.encoder.permuted(tokens, perm_mask, mapping)[used])
        return logits, (used.nonzero()[:, 0], places[used])

    def fill(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens are targets, [B, T] bool, and the sequences with the likeliest ones in their place, [B, T]."""
        logits, where = self.predicted(batch)
        targets, guessed = torch.zeros_like(batch["inputs"].mask), batch["inputs"].ids.clone()
        targets[where], guessed[where] = True, logits.argmax(-1)
        return targets, guessed

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary)."""
        return math.log(self.encoder.vocabulary.size)

    def choose(self, tokens: Tokens, rows: BatchRandom) -> tuple[Tensor, Tensor, Tensor]:
        """perm_mask [B, T, T] bool: i may not see j; the targets' places [B, P], and which of the P there are [B, P] bool.

        Special tokens, like all that is no target, are seen by everybody and see no target.
        """
        length = tokens.ids.shape[1]
        text = tokens.mask & ~self.special[tokens.ids]
        words = text.sum(1)
        goal = ((words + self.context // 2) // self.context).clamp(min=1).minimum(words).minimum(tokens.mask.sum(1) - 1)
        most = max(1, (length + self.context // 2) // self.context)
        rank = self.ranks(text, rows)
        target = rank < goal[:, None]
        places = rank.argsort(1)[:, :most]
        used = torch.arange(most, device=goal.device) < goal[:, None]
        order = rows.uniform("order", self.encoder.length).to(goal.device)[:, :length]
        order = order.masked_fill(~target, -1.0)
        return target[:, None] & (order[:, :, None] <= order[:, None]), places, used

    def ranks(self, text: Tensor, rows: BatchRandom) -> Tensor:
        """Who becomes a target first, [B, T] int64: tokens of spans, then single ones, then (from text.sum(1) on) no text.

        The text, rotated by a random number of tokens so that every one is as likely, is cut into contexts, each with one span
        of 1 ... `span` tokens at any place in it (the paper, and transformers' DataCollatorForPermutationLanguageModeling).
        A context cut off by the end may give too few or too many; the first P count, so that every text has its share exactly.
        """
        device, length = text.device, self.encoder.length

        def uniform(purpose: str, *shape: int) -> Tensor:
            return rows.uniform(purpose, *shape).to(device)

        most = -(-length // self.context)  # contexts, when every span is one token
        count = text.sum(1, keepdim=True)
        spans = 1 + (self.span * uniform("spans", most)).long()
        widths = self.context * spans
        starts = widths.cumsum(1) - widths + ((widths - spans + 1) * uniform("places", most)).long()
        turned = (text.cumsum(1) - 1 + (count * uniform("rotation", 1)).long()) % count.clamp(min=1)
        since = turned[:, None] - starts[..., None]  # [B, contexts, T]
        hit = ((since >= 0) & (since < spans[..., None])).any(1)
        first = torch.where(hit, turned - float(length), uniform("singles", length)[:, : text.shape[1]])
        return first.masked_fill(~text, math.inf).argsort(dim=1, stable=True).argsort(1)
