"""wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477): spans of frames are hidden, and the network picks what the quantiser makes
of a frame's own features among what it makes of other hidden frames of the same sound. Loss and quantiser are those of
transformers' Wav2Vec2ForPreTraining, with random numbers that do not depend on padding or micro-batches; the published penalty on
the features is in neither. The perplexity of the codes, in the diversity loss, is that of a micro-batch.

It asks the encoder for `extract(waves)`, `normalised(extracted)`, `encode(extracted, there, hide)` and `most`.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from ptmrun.loss import Loss
from ptmrun.objectives import base
from ptmrun.objectives.frame_masking import spans

COOLED = 0.7  # share of the steps after which the quantiser has its last temperature, as published
LEAST_SHARE = 0.05  # of the codes: a perplexity below it is a collapse


class Objective(base.Objective):
    """`options`: start, span, distractors, temperature, diversity, groups, codes, code_width, hot, cold."""

    collapse_hints = "task=bestrq, a larger pretrain.batch_size, or a larger task.diversity"
    heat: Tensor

    def __init__(self, encoder: Any, options: Any):
        super().__init__()
        self.encoder, self.options = encoder, options
        config = copy.deepcopy(encoder.net.config)
        config.num_codevector_groups, config.num_codevectors_per_group = options.groups, options.codes
        config.codevector_dim = options.groups * options.code_width
        self.quantizer = Wav2Vec2GumbelVectorQuantizer(config)
        nn.init.normal_(self.quantizer.weight_proj.weight)
        nn.init.zeros_(self.quantizer.weight_proj.bias)
        nn.init.uniform_(self.quantizer.codevectors)
        self.project_hid = nn.Linear(encoder.width, config.codevector_dim)
        self.project_q = nn.Linear(config.codevector_dim, config.codevector_dim)
        self.register_buffer("heat", torch.tensor(float(options.hot)))
        self.perplexity = float(options.groups * options.codes)  # of the last batch

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        """batch: inputs (Waves), rows. The loss is the cross-entropy in nats a hidden frame, and the diversity loss."""
        extracted, there = self.encoder.extract(batch["inputs"])
        hidden = self.hidden(batch, there)
        predicted = self.project_hid(self.encoder.encode(extracted, there, hidden)[hidden])
        vectors, codes, perplexity = self.quantise(self.encoder.normalised(extracted)[hidden], self.gumbel(batch, hidden))
        logits = self.logits(predicted, self.project_q(vectors), codes, self.negatives(batch, hidden))
        count, total = len(logits), self.options.groups * self.options.codes
        contrast = F.cross_entropy(logits, torch.zeros(count, dtype=torch.int64, device=logits.device), reduction="sum")
        diversity = count * (total - perplexity) / total
        self.perplexity = float(perplexity.detach())
        right = (logits[:, 1:].max(1).values < logits[:, 0]).sum()
        shown = {"contrast_accuracy": Loss(right, count), "perplexity": Loss(count * perplexity.detach(), count)}
        return Loss(contrast + self.options.diversity * diversity, count), shown

    def hidden(self, batch: dict[str, Any], there: Tensor) -> Tensor:
        return spans(there, self.options.start, self.options.span, self.encoder.most, batch["rows"])

    def gumbel(self, batch: dict[str, Any], hidden: Tensor) -> Tensor | None:
        """Noise for each hidden frame, [n, groups, codes]; None where the likeliest codes are taken."""
        if not self.training:
            return None
        shape = (self.encoder.most, self.options.groups, self.options.codes)
        drawn = batch["rows"].uniform("quantiser", *shape)[:, : hidden.shape[1]].to(hidden.device)
        return -(-drawn[hidden].clamp(min=1e-20).log()).log()

    def quantise(self, features: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of features [n, F]: (code vectors [n, D], their codes [n, groups], perplexity of the codes over the n, summed over the
        groups)."""
        quantiser, shape = self.quantizer, (self.options.groups, self.options.codes)
        with torch.autocast(features.device.type, enabled=False):
            logits = quantiser.weight_proj(features.float()).unflatten(1, shape)
            soft = logits.softmax(-1) if noise is None else ((logits + noise) / self.heat).softmax(-1)
            codes = soft.argmax(-1)
            hard = F.one_hot(codes, shape[1]).to(soft.dtype)
            chosen = hard if noise is None else hard - soft.detach() + soft
            likely = hard if noise is None else logits.softmax(-1)
            vectors = torch.einsum("ngv,gvd->ngd", chosen, quantiser.codevectors[0].unflatten(0, shape)).flatten(1)
            share = likely.mean(0)
            return vectors, codes, (-torch.xlogy(share, share).sum(-1)).exp().sum()

    def negatives(self, batch: dict[str, Any], hidden: Tensor) -> Tensor:
        """For each hidden frame, of the n in all, the numbers of others of its sound, [n, distractors]; its own number where it
        has no other."""
        count = hidden.sum(1, keepdim=True)  # of each sound
        rank = hidden.cumsum(1) - 1
        drawn = batch["rows"].uniform("distractors", self.encoder.most, self.options.distractors)[:, : hidden.shape[1]]
        others = (drawn.to(hidden.device) * (count - 1)[..., None]).long().clamp(max=(count - 2).clamp(min=0)[..., None])
        others += (others >= rank[..., None]) & (count > 1)[..., None]
        return (others + (count.cumsum(0) - count)[..., None])[hidden]

    def logits(self, predicted: Tensor, vectors: Tensor, codes: Tensor, negatives: Tensor) -> Tensor:
        """Cosines over the temperature, the right one first: [n, D], [n, D], [n, groups], [n, K] -> float32 [n, 1 + K]; -inf for
        a distractor with the codes of the right one."""
        every = torch.cat([torch.arange(len(vectors), device=vectors.device)[:, None], negatives], 1)
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = F.normalize(predicted.float(), dim=1) @ F.normalize(vectors.float(), dim=1).T
        same = (codes[:, None] == codes[negatives]).all(-1)
        return (cosines.gather(1, every) / self.options.temperature).masked_fill(F.pad(same, (1, 0)), -torch.inf)

    def after_step(self, done: int, steps: int) -> None:
        """Cools the quantiser."""
        self.heat.fill_(self.options.hot * (self.options.cold / self.options.hot) ** min(1.0, done / (COOLED * steps)))

    def alarm(self) -> str | None:
        total = self.options.groups * self.options.codes
        if self.perplexity >= LEAST_SHARE * total:
            return None
        return f"the quantiser uses few of its codes: perplexity {self.perplexity:.1f} of {total}"

    @torch.no_grad()
    def pictures(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Which frames are hidden, [B, t] bool."""
        return {"hidden": self.hidden(batch, self.encoder.extract(batch["inputs"])[1])}
