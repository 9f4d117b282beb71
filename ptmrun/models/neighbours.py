"""Initial weights with which a small BERT learns from little text: heads that look at nearby tokens from the beginning.

With the published ones, N(0, 0.02), the average attention is even and the loss of a short masked training stays near that of word
frequencies: steps of Adam's size carry positions this small in one common direction before a head can tell them apart. Here words
and positions have dimensions of their own and are larger than many steps, and each head finds one offset by rotating sines
(Vaswani et al. 2017, arXiv:1706.03762, section 3.5; the idea of attention weights made by hand: Trockman & Kolter 2023,
arXiv:2305.09828). All of it is trained on.
"""

import math

import torch
from transformers import BertModel

OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)  # of the tokens that the heads look at, one after the other through the blocks
PLACES = 64  # dimensions of the positions; the words have the others
RMS = 0.2  # of the positions' dimensions, and of the words' in a width of 128
LONGEST = 100.0  # wavelength / 2 pi of the slowest sine
SHARP = 1.5  # how clearly the heads look there: about half of the attention at the offset itself


@torch.no_grad()
def look(net: BertModel) -> None:
    """Sets embeddings, queries and keys of a BERT whose heads are 64 wide, in place; width 128 or more."""
    width, heads = net.config.hidden_size, net.config.num_attention_heads
    words, places = net.embeddings.word_embeddings.weight, net.embeddings.position_embeddings.weight
    words.mul_(RMS / net.config.initializer_range * math.sqrt(PLACES / (width - PLACES)))  # logits as in a width of 128
    words[:, :PLACES] = 0
    net.embeddings.token_type_embeddings.weight.zero_()
    rates = LONGEST ** (-torch.arange(0, PLACES, 2, device=places.device) / PLACES)
    angles = torch.arange(len(places), device=places.device)[:, None] * rates
    places.zero_()
    places[:, 0:PLACES:2], places[:, 1:PLACES:2] = (math.sqrt(2) * RMS * f(angles) for f in (torch.sin, torch.cos))
    sharp = SHARP * math.sqrt(2 * PLACES / width)  # the layer norm makes the positions larger in a larger width
    for i, block in enumerate(net.encoder.layer):
        for head in range(heads):
            rows = slice(head * PLACES, (head + 1) * PLACES)
            turned = OFFSETS[(i * heads + head) % len(OFFSETS)] * rates
            turn = torch.block_diag(*(torch.tensor([[c, s], [-s, c]]) for c, s in zip(turned.cos(), turned.sin(), strict=True)))
            block.attention.self.query.weight[rows, :PLACES] += sharp * turn.to(words)
            block.attention.self.key.weight[rows, :PLACES] += sharp * torch.eye(PLACES).to(words)
