"""Initial weights with which a small BERT, XLNet or BART learns from little text: heads that look at nearby tokens at first.

With the published ones, N(0, 0.02), the average attention is even and the loss of a short masked training stays near that of word
frequencies: steps of Adam's size carry positions this small in one common direction before a head can tell them apart. Here words
and positions have dimensions of their own and are larger than many steps, and each head finds one offset by rotating sines
(Vaswani et al. 2017, arXiv:1706.03762, section 3.5; the idea of attention weights made by hand: Trockman & Kolter 2023,
arXiv:2305.09828). XLNet has sines of distances, so there a bias of each head says which one. All of it is trained on.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import BartModel, BertModel, XLNetModel

from ptmrun.models import text_base

OFFSETS = (-1, 1, -2, 2, -3, 3, -4, 4)  # of the tokens that the heads look at, one after the other through the blocks
BEHIND = (0, -1, -2, -3)  # in a decoder, whose token 0 is the one before that to be written
PLACES = 64  # dimensions of the positions; the words have the others
RMS = 0.2  # of the positions' dimensions, and of the words' in a width of 128
LONGEST = 100.0  # wavelength / 2 pi of the slowest sine
RATES = LONGEST ** (-torch.arange(0, PLACES, 2) / PLACES)
SMALL = ("tiny", "mini")  # sizes that little text is for
SHARP = 1.5  # how clearly the heads look there: about half of the attention at the offset itself


def resolve(options: Any, sizes: dict[str, tuple[int, int]]) -> tuple[dict[str, Any], list[str]]:
    """What model.size=auto and model.initial=auto are: ({key: value}, notes)."""
    changes, notes = text_base.sized(options, sizes)
    if options.initial != "auto":
        return changes, notes
    if changes.get("size", options.size) not in SMALL or options.shape:
        return {**changes, "initial": "library"}, notes
    why = "model.initial=neighbours: heads that look at nearby tokens at first, so that little text is enough"
    return {**changes, "initial": "neighbours"}, [*notes, why]


def offset(block: int, head: int, heads: int, offsets: tuple[int, ...] = OFFSETS) -> int:
    """How far from a token a head looks."""
    return offsets[(block * heads + head) % len(offsets)]


@torch.no_grad()
def look_by_distance(net: XLNetModel) -> None:
    """Sets words, keys of distances and their biases of an XLNet whose heads are 64 wide, in place; width 128 or more."""
    width = net.config.d_model
    net.word_embedding.weight.mul_(RMS / net.config.initializer_range * math.sqrt(128 / width))  # logits as in a width of 128
    sines = torch.linspace(0, width // 4 - 1, PLACES // 2).round().long()  # of wavelengths 2 pi ... 2 pi LONGEST
    rates = 10000.0 ** (-2 * sines / width)
    places = torch.arange(PLACES // 2)
    sharp = SHARP * math.sqrt(2)
    for i, block in enumerate(net.layer):
        attention = block.rel_attn
        for head in range(net.config.n_head):
            keys = attention.r[:, head]
            keys.zero_()
            keys[sines, places] = sharp
            keys[width // 2 + sines, PLACES // 2 + places] = sharp
            turned = -offset(i, head, net.config.n_head) * rates  # the library counts how far a key is before its query
            attention.r_r_bias[head] = sharp * torch.cat([turned.sin(), turned.cos()])


@torch.no_grad()
def look(net: BertModel) -> None:
    """Sets embeddings, queries and keys of a BERT whose heads are 64 wide, in place; width 128 or more."""
    part(net.embeddings.word_embeddings, net.config.initializer_range)
    place(net.embeddings.position_embeddings, 0)
    net.embeddings.token_type_embeddings.weight.zero_()
    for i, block in enumerate(net.encoder.layer):
        aim(block.attention.self.query, block.attention.self.key, i, OFFSETS)


@torch.no_grad()
def look_across(net: BartModel) -> None:
    """The same of a BART, whose decoder looks at the tokens behind it, at the same places of the source, and for what to copy."""
    part(net.shared, net.config.init_std)
    for half in (net.encoder, net.decoder):
        place(half.embed_positions, half.embed_positions.offset)
        for i, block in enumerate(half.layers):
            aim(block.self_attn.q_proj, block.self_attn.k_proj, i, OFFSETS if half is net.encoder else BEHIND)
    for i, block in enumerate(net.decoder.layers):
        aim(block.encoder_attn.q_proj, block.encoder_attn.k_proj, i, BEHIND)
    copy(net.encoder.layers[0].self_attn, net.decoder.layers[0].encoder_attn)


def copy(within: Any, across: Any) -> None:
    """The first heads of a source's and of a decoder's attention to it, together: each token of the source also says, in turned
    dimensions, which one is before it, and the decoder looks for the token that its last one is before (as the induction heads of
    Olsson et al. 2022, arXiv:2209.11895)."""
    words, same = slice(PLACES, 2 * PLACES), torch.eye(PLACES)
    turned = nn.init.orthogonal_(torch.empty(PLACES, PLACES))
    for attention, written in ((within, turned), (across, same)):
        attention.v_proj.weight[:PLACES, words] += same
        attention.out_proj.weight[words, :PLACES] += written
    for layer, looked in ((across.q_proj, same), (across.k_proj, turned.T)):
        layer.weight[:PLACES] = 0
        layer.weight[:PLACES, words] = looked


def part(words: nn.Embedding, deviation: float) -> None:
    """Makes room for positions beside words of a standard deviation, and makes these as large as Adam's steps need."""
    width = words.embedding_dim
    words.weight.mul_(RMS / deviation * math.sqrt(PLACES / (width - PLACES)))  # logits as in a width of 128
    words.weight[:, :PLACES] = 0


def place(positions: nn.Embedding, first: int) -> None:
    """Sines in their dimensions; the row of position 0 is `first`."""
    angles = (torch.arange(len(positions.weight)) - first)[:, None] * RATES
    positions.weight.zero_()
    for i, wave in enumerate((torch.sin, torch.cos)):
        positions.weight[:, i:PLACES:2] = math.sqrt(2) * RMS * wave(angles)


def aim(query: nn.Linear, key: nn.Linear, block: int, offsets: tuple[int, ...]) -> None:
    """Each head of a block at its offset: its queries turn the sines, its keys take them as they are."""
    heads = query.in_features // PLACES
    sharp = SHARP * math.sqrt(2 / heads)  # the layer norm makes the positions larger in a larger width
    for head in range(heads):
        rows = slice(head * PLACES, (head + 1) * PLACES)
        turned = offset(block, head, heads, offsets) * RATES
        turn = torch.block_diag(*(torch.tensor([[c, s], [-s, c]]) for c, s in zip(turned.cos(), turned.sin(), strict=True)))
        query.weight[rows, :PLACES] += sharp * turn
        key.weight[rows, :PLACES] += sharp * torch.eye(PLACES)
