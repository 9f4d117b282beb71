"""LSTM language model (Zaremba et al. 2014, arXiv:1409.2329) whose softmax shares the embeddings (Press & Wolf 2017,
arXiv:1608.05859); with a second stack from right to left it is ELMo's (Peters et al. 2018, arXiv:1802.05365) on whole tokens."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from ptmrun.batch import Framing, TextSpec, Tokens, Vocabulary, from_mark
from ptmrun.models import base, library_format, sampling, text_base
from ptmrun.models.base import Family

SIZES = {"tiny": (128, 2), "small": (256, 2), "base": (650, 2)}  # width, layers; base: Zaremba et al.'s medium
FRAMING = Framing(
    {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "<s> $A </s>",
    "<s> $A </s> $B:1 </s>:1",
)
TOKENIZER = "wordpiece"
SCALE = 0.5  # of the first embeddings; with 1 / sqrt(width) the gates see next to nothing, and only frequencies are learned
FRAMED = False  # a text goes on in the next block


def resolve(options: Any, spec: TextSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why)."""
    return text_base.sized(options, SIZES)


def build(options: Any, spec: TextSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options. It has no attention, and texts may be of any length."""
    vocabulary, length = spec
    width, depth = SIZES[options.size]
    return Encoder(vocabulary, length, width, depth, options.bidirectional, options.dropout, options.pool, f"lstm-{options.size}")


class Encoder(base.Encoder):
    """Two stacks that share embeddings and softmax, or the first alone. Dropout is between layers, never over time."""

    from_library = False
    can_generate = True
    trims = True

    unit = "token"

    def __init__(
        self,
        vocabulary: Vocabulary,
        length: int,
        width: int,
        depth: int,
        bidirectional: bool,
        dropout: float,
        pool: str,
        kind: str,
    ):
        super().__init__()
        self.width, self.depth, self.length = width * (1 + bidirectional), depth, length
        self.vocabulary, self.pool, self.kind, self.dropout = vocabulary, pool, kind, dropout
        self.embedding = nn.Embedding(vocabulary.size, width)
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(vocabulary.size))  # of the softmax
        self.right = nn.LSTM(width, width, depth, batch_first=True, dropout=dropout)
        self.left = nn.LSTM(width, width, depth, batch_first=True, dropout=dropout) if bidirectional else None
        nn.init.normal_(self.embedding.weight, std=SCALE)
        with torch.no_grad():  # it remembers at first (Jozefowicz et al. 2015); of the four gates, forget is the second
            for name, parameter in self.named_parameters():
                if ".bias_" in name:
                    parameter[width : 2 * width] = float(".bias_ih_" in name)

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def stacks(self, tokens: Tokens) -> list[Tensor]:
        """What each stack gives at every token, [B, T, d] each: from the left up to it and, where there is one, from the right.

        Padding is at the end: the first stack meets it last, and the second reads each text reversed, its padding left in place.
        Tokens are embedded once, so that attributions to embeddings see what both stacks read. Of documents apart each
        begins with the mark before it, from the right with its own.
        """
        ids, mask, _, documents = tokens
        words = self.embedding(ids)
        begun = None if documents is None else from_mark(documents)
        outputs = [anew(self.right, self.dropped(words), begun)]
        if self.left is not None:
            place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            turned = torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, place)
            back = turned[..., None].expand_as(words)
            begun = None if documents is None else documents.gather(1, turned)
            outputs.append(anew(self.left, self.dropped(words.gather(1, back)), begun).gather(1, back))
        return [self.dropped(y) for y in outputs]

    def hidden(self, tokens: Tokens) -> Tensor:
        """What the last layer gives at every token, both stacks side by side: [B, T] -> [B, T, D]."""
        return torch.cat(self.stacks(tokens), -1)

    def local_features(self, tokens: Tokens) -> Tensor:
        """Of each token: [B, T] -> [B, T, D]."""
        return self.hidden(tokens)

    def features(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, D]: the mean of the tokens, or what each stack ends with."""
        if self.pool == "mean":
            return text_base.mean(self.hidden(tokens), tokens.mask)
        right, *left = self.stacks(tokens)
        return torch.cat([text_base.last(right, tokens.mask), *(y[:, 0] for y in left)], -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the token that comes next at each of the chosen positions of one stack: [n, d] -> float32 [n, V]."""
        return F.linear(hidden, self.embedding.weight, self.bias).float()

    def next_tokens(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(logits [n, V], the tokens themselves [n]) of every token but the first from those before it; then, where there is a
        second stack, of every token but the last from those after it. Without padding."""
        there = tokens.mask[:, 1:]
        right, *left = self.stacks(tokens)
        hidden = torch.cat([right[:, :-1][there], *(y[:, 1:][there] for y in left)])
        wanted = torch.cat([tokens.ids[:, 1:][there], *(tokens.ids[:, :-1][there] for _ in left)])
        return self.logits(hidden), wanted

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, noise: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
    ) -> Tensor:
        """Samples what follows: [B, n] and uniform noise [B, m] -> [B, n + m]."""
        new, state = tokens, None
        for column in noise.T:
            hidden, state = self.right(self.dropped(self.embedding(new)), state)
            new = sampling.sample(self.logits(hidden[:, -1]), column, temperature, top_k, top_p)[:, None]
            tokens = torch.cat([tokens, new], 1)
        return tokens

    @property
    def embeddings(self) -> nn.Module:
        """Of words."""
        return self.embedding

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the softmax's bias."""
        self.bias = None

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if "embedding." in name:
            return 0
        layer = re.search(r"_l(\d+)$", name)
        return int(layer[1]) + 1 if layer else self.depth + 1

    def save(self, folder: Path, tokenizer: Any) -> None:
        """A folder with the weights, what they are of, and the tokenizer, which may be None; replaced as a whole."""
        about = {"library": "ptmrun", "model": self.kind, "vocabulary": self.vocabulary.size}
        library_format.save(self, folder, {**about, "bidirectional": self.left is not None}, None, tokenizer=tokenizer)

    def load(self, folder: Path) -> None:
        """Raises UserError when a tensor does not fit."""
        library_format.load(self, folder, library_format.tensors_of(folder))

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder of other texts, as they are: there are no positions."""
        return tensors, []


def anew(stack: nn.LSTM, words: Tensor, documents: Tensor | None) -> Tensor:
    """What a stack gives at every token, its state zero where a document begins: [B, T, D], [B, T] -> [B, T, d]."""
    if documents is None:
        return stack(words)[0]
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True).flatten()
    first = begins.nonzero()[:, 0]
    lengths = torch.diff(first, append=first.new_tensor([documents.numel()]))
    place = torch.arange(documents.numel(), device=first.device) - first.repeat_interleave(lengths)
    rank = lengths.argsort(descending=True, stable=True).argsort()
    order = (place * len(first) + rank[begins.cumsum(0) - 1]).argsort()  # all first tokens, the longest document's in front ...
    outputs, _ = stack(PackedSequence(words.flatten(0, 1)[order], place.bincount().cpu()))
    return outputs.data[order.argsort()].unflatten(0, documents.shape)


FAMILY = Family(resolve=resolve, build=build, framing=FRAMING, tokenizer=TOKENIZER, framed=FRAMED, sizes=SIZES)
