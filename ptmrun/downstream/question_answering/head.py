"""Of each token, whether the answer starts and whether it ends there."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.token_head import Tokenwise
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode


class Reader(Tokenwise):
    library_task = "answers"

    def __init__(self, encoder: Any):
        super().__init__(encoder, 2)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, T], labels [B, K, 2]. The mean of the cross-entropies of start and end over a window's tokens; all
        that start, or end, an answer are right together (sum objective: Clark & Gardner 2018, arXiv:1710.10723, section 3.2)."""
        tokens, labels = batch["inputs"], batch["labels"]
        logits = torch.full((*tokens.ids.shape, 2), -torch.inf, device=tokens.ids.device)
        logits[tokens.mask] = self.logits(tokens, tokens.mask)
        place = torch.arange(logits.shape[1], device=logits.device)[:, None]
        right = (labels[:, :, None] == place).any(1)
        loss = (logits.logsumexp(1) - logits.masked_fill(~right, -torch.inf).logsumexp(1)).sum() / 2
        both = right.gather(1, logits.argmax(1, keepdim=True)).all(2).sum()
        return Loss(loss, len(labels)), {"both_right": Loss(both, len(labels))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities: the mean of ln(tokens)."""
        return float(batch["inputs"].mask.sum(1).log().mean())

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """How much each token is the start and the end, one window after the other without padding: [tokens, 2] on the CPU."""
        with eval_mode(self):
            return {"logits": torch.cat([self.logits(tokens, tokens.mask).cpu() for tokens in batches])}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Reader:
    return Reader(encoder)
