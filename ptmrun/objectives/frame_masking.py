"""Which frames of sounds are hidden: spans, as in wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477, section 4.1)."""

import torch
from torch import Tensor

from ptmrun.rng import BatchRandom


def spans(there: Tensor, start: float, span: int, most: int, rows: BatchRandom) -> Tensor:
    """Hidden frames, [B, t] bool: each frame that is `there` [B, t] begins a span of so many with the probability `start`; one at
    least of every sound does. most: frames of the longest sound that there may be, for which is drawn, so that padding changes
    nothing."""
    drawn = rows.uniform("mask/spans", most)[:, : there.shape[1]].to(there.device)
    drawn = torch.where(there, drawn, 2.0)
    begins = (drawn < start) | (drawn == drawn.min(1, keepdim=True).values)
    hidden = begins.clone()
    for shift in range(1, min(span, there.shape[1])):
        hidden[:, shift:] |= begins[:, :-shift]
    return hidden & there
