"""A linear head on the first sub-word of each word, cross-entropy."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.token_classification.split import NONE
from ptmrun.downstream.token_head import Tokenwise
from ptmrun.loss import Loss, smoothed_entropy
from ptmrun.models.modes import eval_mode


class Tagger(Tokenwise):
    library_task = "tags"

    def __init__(self, encoder: Any, classes: int, label_smoothing: float):
        super().__init__(encoder, classes)
        self.label_smoothing = label_smoothing

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs [B, T], labels [B, T or more] as `Sentences.answers` gives them. Cross-entropy a word."""
        labels = batch["labels"][:, : batch["inputs"].ids.shape[1]]
        chosen = labels != NONE
        logits, labels = self.logits(batch["inputs"], chosen), labels[chosen]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        right = (logits.detach().argmax(1) == labels).sum()
        return Loss(loss, len(labels)), {"accuracy": Loss(right, len(labels))}

    def initial_loss(self, batch: dict[str, Any]) -> float:
        """Of equal probabilities, smoothed labels or not: ln(classes)."""
        return math.log(self.head.out_features)

    def lowest_loss(self, batch: dict[str, Any]) -> float:
        """Of the smoothed labels themselves: their entropy."""
        return smoothed_entropy(self.label_smoothing, self.head.out_features)

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        """The tag of every token, and its probability, one text after the other without padding: [tokens] on the CPU."""
        with eval_mode(self):
            likeliest = [self.logits(tokens, tokens.mask).softmax(1).max(1) for tokens in batches]
        tags = torch.cat([best.indices.to("cpu", torch.int16) for best in likeliest])
        return {"tags": tags, "confidence": torch.cat([best.values.cpu() for best in likeliest])}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Tagger:
    return Tagger(encoder, len(setup.classes), options.label_smoothing)
