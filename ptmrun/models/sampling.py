"""The next token from a model's logits."""

from torch import Tensor


def sample(logits: Tensor, noise: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """Token numbers from uniform noise in [0, 1): [B, V], [B] -> [B] int64.

    From the `top_k` likeliest (1 or more; None: all), and of these from as few as reach the probability `top_p` together, at
    least the likeliest (nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751). A temperature of 0 takes the likeliest, which
    is what lower and lower ones come to. Likely tokens come first, so that each is where the cumulative probability passes the
    noise.
    """
    values, order = logits.float().sort(dim=-1, descending=True, stable=True)
    if temperature == 0:
        return order[:, 0]
    chances = ((values - values[:, :1]) / temperature)[:, :top_k].softmax(-1)
    kept = chances.cumsum(-1) - chances < top_p
    kept[:, 0] = True
    below = (chances * kept).cumsum(-1)
    place = (below <= noise[:, None] * below[:, -1:]).sum(-1, keepdim=True)  # float32 noise times x is below x
    return order.gather(1, place).squeeze(1)


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): logits with a condition and, below them, those of the
    same samples without: [2 B, V] -> [B, V], those without and `guidance` times what the condition changes in them."""
    given, without = logits.float().chunk(2)
    return without + guidance * (given - without)
