"""How the codes of images are learned, and whether they are used. Functions of vectors [B, n, D], codes and probabilities."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.loss import Loss

TINY = 1e-10
KEPT = 0.99  # of what is counted, from a step to the next
USED = 0.02  # of an equal share of the places: a code that is rarer counts as unused
LOW = 0.1  # of the codes, as perplexity: fewer are a sign of a collapse


def gumbel_softmax(logits: Tensor, uniform: Tensor, temperature: Tensor | float) -> Tensor:
    """A relaxed sample of one code (Jang et al. 2017, arXiv:1611.01144, equations 1 and 2) from uniform noise: [..., K] both."""
    noise = -(-(uniform + TINY).log() + TINY).log()
    return ((logits + noise) / temperature).softmax(-1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Of the probabilities of K codes from equal ones, in nats: [..., K] -> [...], from 0 to ln K."""
    logs = logits.log_softmax(-1)
    return (logs.exp() * logs).sum(-1) + math.log(logits.shape[-1])


def straight_through(value: Tensor, like: Tensor) -> Tensor:
    """`value`, whose gradient goes to `like`."""
    return like + (value - like).detach()


def quantisation(vectors: Tensor, quantised: Tensor, commitment: float) -> Tensor:
    """Squared distances, by which codes go to vectors and, `commitment` times as much, vectors to codes (van den Oord et al.
    2017, arXiv:1711.00937, equation 3): [..., D] both -> [...]."""
    to_vectors = (quantised - vectors.detach()).square().sum(-1)
    return to_vectors + commitment * (vectors - quantised.detach()).square().sum(-1)


def perplexity(counts: Tensor) -> Tensor:
    """exp(entropy) of the shares that these counts [K] are: from 1, one code alone, to K, all equally often."""
    shares = counts / counts.sum().clamp(min=TINY)
    return torch.special.entr(shares).sum().exp()


def at(progress: Tensor | float, first: float, last: float) -> Any:
    """From `first` to `last` along a cosine; progress from 0 to 1, and more."""
    progress = torch.as_tensor(progress).clamp(0, 1)
    return last + (first - last) * (1 + (math.pi * progress).cos()) / 2


class Usage(nn.Module):
    """How often each code was used lately: counts that fade, by optimizer steps."""

    recent: Tensor
    now: Tensor

    def __init__(self, codes: int):
        super().__init__()
        self.register_buffer("recent", torch.zeros(codes))
        self.register_buffer("now", torch.zeros(codes))  # of this step

    @torch.no_grad()
    def count(self, tokens: Tensor) -> None:
        self.now += torch.bincount(tokens.flatten(), minlength=len(self.now))

    @torch.no_grad()
    def after_step(self) -> None:
        self.recent.mul_(KEPT).add_(self.now)
        self.now.zero_()

    def metrics(self) -> dict[str, Loss]:
        if not bool(self.recent.any()):
            return {}
        used = (self.recent > USED * self.recent.mean()).sum()
        return {"code_perplexity": Loss(perplexity(self.recent), 1), "codes_used": Loss(used, 1)}

    def alarm(self) -> str | None:
        """What speaks for a codebook that collapses; None when nothing does."""
        if not bool(self.recent.any()) or (value := float(perplexity(self.recent))) >= LOW * len(self.recent):
            return None
        return f"perplexity of the codes {value:.1f}, of {len(self.recent)} codes"


class Quantiser(nn.Module):
    """Trains a codec with vector quantisation. `options`: commitment, restart (steps; a code that was not used in so many of them
    begins anew as a vector of the batch, by seed and step), restarts (share of the steps in which that is done)."""

    idle: Tensor
    candidates: Tensor

    def __init__(self, codec: Any, options: Any):
        super().__init__()
        self.options, self.usage = options, Usage(codec.count)
        never = torch.full((codec.count,), float(options.restart))  # so that what the first step leaves out begins anew
        self.register_buffer("idle", never)  # steps that a code was not used
        self.register_buffer("candidates", torch.zeros(codec.codes.shape))

    def forward(
        self, codec: Any, images: Tensor, rows: rng.BatchRandom, fixed: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Loss]]:
        """(squared error [B] of the values, what quantisation costs [B], codes [B, n], metrics). `fixed`: codes stay, and the
        decoder alone is trained."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not fixed):
            vectors = codec.vectors(images)
            tokens = codec.cosines(vectors).argmax(2)
            quantised = codec.book[tokens]
        if self.training and not fixed:
            self.usage.count(tokens)
            self.propose(vectors.detach(), rows)
        rebuilt = codec.decode(straight_through(quantised, vectors))
        error = (rebuilt.float() - images).square().mean((1, 2, 3))
        cost = quantisation(vectors, quantised, self.options.commitment).mean(1)
        return error, cost, tokens, self.usage.metrics()

    def propose(self, vectors: Tensor, rows: rng.BatchRandom) -> None:
        """Takes a vector of the whole batch for each code, as far as it is among these rows of it: [b, n, D]."""
        chosen = torch.randint(
            rows.total * vectors.shape[1], (len(self.idle),), generator=rng.generator(rows.seed, "restart", rows.step)
        )
        chosen = chosen.to(vectors.device) - rows.start * vectors.shape[1]
        mine = (chosen >= 0) & (chosen < vectors.shape[0] * vectors.shape[1])
        self.candidates[mine] = vectors.flatten(0, 1)[chosen[mine]].to(self.candidates.dtype)

    @torch.no_grad()
    def after_step(self, codec: Any, done: int, steps: int) -> None:
        self.idle.add_(1).masked_fill_(self.usage.now > 0, 0)
        self.usage.after_step()
        if done <= self.options.restarts * steps:
            dead = self.idle >= self.options.restart
            codec.codes[dead] = self.candidates[dead]
            self.idle[dead] = 0


def first_error(images: Tensor) -> float:
    """Squared error of zeros, which untrained decoders about give."""
    return float(F.mse_loss(torch.zeros_like(images), images))
