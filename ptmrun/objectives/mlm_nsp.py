"""BERT's two objectives (Devlin et al. 2019, arXiv:1810.04805): masked tokens, and whether the second text of a pair follows.

It asks the encoder for `hidden(tokens)`, `logits(hidden)`, `next_sentence(hidden)`, `vocabulary` and `length`.

The loss is the mean over the batch's hidden tokens plus the mean over its pairs. A micro-batch knows the number of its own hidden
tokens alone, so before several of them `count` adds these up and gives each the whole batch's pairs per hidden token. Times that,
the sum over hidden tokens is per pair as well, and accumulation gives the whole batch's loss however long the texts are.
"""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.masking import Masking, filled


class Objective(base.Objective):
    """It has no heads of its own: both belong to the library's model. `options`: those of `Masking`."""

    fills = True
    pairs = True  # it wants pairs of texts
    initial_within = 1.5  # see mlm

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder = encoder
        self.masking = Masking(encoder.vocabulary, encoder.length, options)

    def count(self, micros: list[dict[str, Any]]) -> None:
        """Sets `pairs_per_token` of a step's micro-batches: the whole batch's pairs by its hidden tokens."""
        own = [self.masking(micro["inputs"], micro["rows"]).hidden for micro in micros]
        pairs, masked = self.add_up([sum(map(len, own)), sum(int(hidden.sum()) for hidden in own)])
        for micro in micros:
            micro["pairs_per_token"] = pairs / max(1, masked)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Tokens), rows, next [B] bool (the second text follows the first). The loss is in nats."""
        tokens = batch["inputs"]
        shown, hidden = self.masking(tokens, batch["rows"])
        states = self.encoder.hidden(shown)
        logits, wanted = self.encoder.logits(states[hidden]), tokens.ids[hidden]
        follows, label = self.encoder.next_sentence(states), (~batch["next"]).long()  # 0: it follows, as in transformers
        masked, pairs = len(wanted), len(label)
        mlm = F.cross_entropy(logits, wanted, reduction="sum")
        nsp = F.cross_entropy(follows, label, reduction="sum")
        total = mlm * batch.get("pairs_per_token", pairs / max(1, masked)) + nsp
        return Loss(total, pairs), {
            "loss_mlm": Loss(mlm, masked),
            "loss_nsp": Loss(nsp, pairs),
            "masked_accuracy": Loss((logits.argmax(-1) == wanted).sum(), masked),
            "nsp_accuracy": Loss((follows.argmax(-1) == label).sum(), pairs),
        }

    def fill(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Which tokens are hidden, [B, T] bool, and the sequences with the likeliest ones in their place, [B, T]."""
        return filled(self.encoder, self.masking, batch)

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: ln(vocabulary) + ln 2."""
        return math.log(self.encoder.vocabulary.size) + math.log(2)
