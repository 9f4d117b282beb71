"""The model of recognition: a linear layer on every frame."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ptmrun.batch import Tokens, Waves
from ptmrun.downstream.base import Model, ProblemSetup
from ptmrun.downstream.classification import exactly, linear
from ptmrun.downstream.recognition import ctc
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode


class Recogniser(Model):
    """encoder.local_features -> the character, or the blank, at each frame."""

    def __init__(self, encoder: Any, characters: int, beams: int):
        super().__init__()
        self.encoder, self.beams = encoder, beams
        self.head = linear(encoder.width, characters + 1)

    def frames(self, waves: Waves) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [B, t, V], how many frames each sound has [B])"""
        logits = exactly(self.head, self.encoder.local_features(waves))
        return logits.float().log_softmax(-1), self.encoder.count(waves)

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Waves), labels (Tokens). The loss is that of CTC in nats a character; 0 for a target that wants more
        frames than there are."""
        target: Tokens = batch["labels"]
        log_probabilities, counts = self.frames(batch["inputs"])
        lengths = target.mask.sum(1)
        nats = F.ctc_loss(
            log_probabilities.transpose(0, 1), target.ids, counts, lengths, ctc.BLANK, reduction="sum", zero_infinity=True
        )
        return Loss(nats, lengths.sum()), {}

    @torch.no_grad()
    def predict(self, batches: Iterable[Waves]) -> dict[str, Tensor]:
        """ids: what is said in all sounds, numbers of characters [N, T] int64 on the CPU, padded with 0 at the end. path: the
        likeliest character of each frame, 0 where none is, [N, t] int16, padded with -1."""
        found: list[list[int]] = []
        path: list[Tensor] = []
        with eval_mode(self):
            for waves in batches:
                log_probabilities, counts = (x.cpu() for x in self.frames(waves))
                for row, count in zip(log_probabilities, counts.tolist(), strict=True):
                    path.append(row[:count].argmax(1).to(torch.int16))
                    found.append(ctc.greedy(row[:count]) if self.beams == 1 else ctc.prefix_beam(row[:count], self.beams))
        return {"ids": padded(found), "path": pad_sequence(path, batch_first=True, padding_value=-1)}


def padded(ids: list[list[int]]) -> Tensor:
    """[N, T] int64, one column at least."""
    whole = torch.zeros(len(ids), max(1, *map(len, ids), 0), dtype=torch.int64)
    for row, some in zip(whole, ids, strict=True):
        row[: len(some)] = torch.tensor(some, dtype=torch.int64)
    return whole


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Recogniser:
    """The model of a fine-tuning with these options, before training."""
    return Recogniser(encoder, len(setup.facts["characters"]), setup.options.beams)
