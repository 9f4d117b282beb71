"""Every random number from (seed, purpose, step or index), never from history: resume needs no state, workers do not matter.

Random tensors are drawn for the whole batch of a step and then sliced, so micro-batches (gradient accumulation) and, later,
processes see the numbers that the whole batch would have seen.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 6  # of a Feistel network


def key(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed from (seed, purpose, index)."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator; random numbers are drawn on the CPU so that they are the same on every device."""
    return torch.Generator().manual_seed(key(seed, purpose, index))


def permutation(seed: int, purpose: str, n: int, index: int = 0) -> Tensor:
    """A permutation of range(n), [n] int64."""
    return torch.randperm(n, generator=generator(seed, purpose, index))


def scattered(seed: int, purpose: str, n: int, places: Tensor, index: int = 0) -> Tensor:
    """What a permutation of range(n) has at these places, [m] int64 both: another one than `permutation`'s, of which no more than
    what is asked for is in memory. A Feistel network on the smallest even number of bits that holds n; what goes beyond n goes
    through it again (Black and Rogaway 2002, "Ciphers with arbitrary finite domains")."""
    half = max(1, (n - 1).bit_length() + 1 >> 1)
    low, keys = (1 << half) - 1, [key(seed, f"{purpose}/round {i}", index) for i in range(ROUNDS)]

    def once(x: Tensor) -> Tensor:
        left, right = x >> half, x & low
        for each in keys:
            left, right = right, left ^ (mixed(right ^ each) & low)
        return left << half | right

    found = once(places)
    while bool((outside := found >= n).any()):
        found[outside] = once(found[outside])
    return found


def mixed(x: Tensor) -> Tensor:
    """Bits that depend on all bits, int64 both (SplitMix64's finaliser: Steele et al. 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * (factor - (1 << 64))
    return x ^ (x >> 31 & (1 << 33) - 1)


def seed_everything(seed: int, purpose: str, index: int = 0) -> None:
    """Sets PyTorch's global generators (initial weights, dropout)."""
    torch.default_generator.manual_seed(key(seed, purpose, index))
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(key(seed, purpose, index))


@dataclass(frozen=True)
class BatchRandom:
    """The random numbers of rows [start, stop) of a batch of `total` samples at one step."""

    seed: int
    step: int
    start: int
    stop: int
    total: int

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """Uniform in [0, 1), [stop - start, *shape] float32 on the CPU."""
        whole = torch.rand(self.total, *shape, generator=generator(self.seed, purpose, self.step))
        return whole[self.start : self.stop]


def leave_untraced() -> None:
    """To be called before something is compiled: a generator cannot be traced. No decorator, as that imports the compiler, which
    takes as long as PyTorch itself."""
    BatchRandom.uniform = torch.compiler.disable(BatchRandom.uniform)  # type: ignore[method-assign]
