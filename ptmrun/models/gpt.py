"""GPT-2 (Radford et al. 2019): transformers' GPT2LMHeadModel, which reads from left to right."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)

from ptmrun.batch import Framing, TextSpec, Tokens, Vocabulary, from_mark
from ptmrun.models import attention_mask, base, library_format, sampling, text_base
from ptmrun.models.base import Family

SIZES = {  # width, blocks; heads of 64. small and medium: GPT-2's
    "tiny": (128, 2),
    "mini": (256, 4),
    "small": (768, 12),
    "base": (768, 12),  # the same by another name
    "medium": (1024, 24),
}
END = "<|endoftext|>"  # before a text, so that its first token is predicted too, and after it
FRAMING = Framing(
    {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": "<|pad|>"},
    f"{END} $A {END}",
    f"{END} $A {END} $B {END}",  # of one type: the library adds the embeddings of token 0 and 1 as those of types
)
TOKENIZER = "bpe"
SHAPE = ("n_embd", "n_layer", "n_head")  # in a folder's config.json
WHOLE: dict[str, Any] = {  # the library's own models for tasks
    "classes": GPT2ForSequenceClassification,
    "several": GPT2ForSequenceClassification,
    "tags": GPT2ForTokenClassification,
    "answers": GPT2ForQuestionAnswering,
}
FRAMED = False  # a text goes on in the next block


def resolve(options: Any, spec: TextSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why)."""
    return text_base.sized(options, SIZES)


def build(options: Any, spec: TextSpec, attention: str) -> "Encoder":
    """An encoder of texts of at most `length` tokens with the library's initial weights, from resolved options."""
    vocabulary, length = spec
    width, depth, heads = text_base.shape(options, SIZES)
    config = GPT2Config(
        vocab_size=vocabulary.size,
        n_positions=length,
        n_embd=width,
        n_layer=depth,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",  # the library's "gelu_new" in one pass instead of eight
        resid_pdrop=options.dropout,
        embd_pdrop=options.dropout,
        attn_pdrop=options.dropout,
        bos_token_id=vocabulary.end if vocabulary.start is None else vocabulary.start,
        eos_token_id=vocabulary.end,
        pad_token_id=vocabulary.pad,
        attn_implementation=attention,
    )
    return Encoder(config, vocabulary, options.pool, text_base.named("gpt", options))


class Encoder(base.Encoder):
    """`net` is the library's network, its parameter names kept."""

    attends = True
    trims = True
    can_generate = True

    unit = "token"
    why_no_classifier = "its own takes the last token, model.pool=last"
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attn\.c_attn",
        "attention": r".*\.attn\.c_proj",
        "feed_forward": r".*\.mlp\.c_proj",
    }

    def __init__(self, config: GPT2Config, vocabulary: Vocabulary, pool: str, kind: str):
        super().__init__()
        self.width, self.depth, self.length = config.n_embd, config.n_layer, config.n_positions
        self.vocabulary, self.pool, self.kind, self.longest = vocabulary, pool, kind, self.length
        self.net = GPT2LMHeadModel(config)

    def hidden(self, tokens: Tokens) -> Tensor:
        """What the last block gives at every token, normalised: [B, T] -> [B, T, D].

        Embeddings go in because the library warns of padding without a mask when it sees token numbers.
        """
        body = self.net.transformer
        return body(inputs_embeds=body.wte(tokens.ids), attention_mask=self.mask(tokens), use_cache=False).last_hidden_state

    def mask(self, tokens: Tokens) -> Tensor | None:
        """None lets attention use its faster causal kernel: padding is at the end, where nothing looks back to it. Of documents
        apart, each begins with the mark before it, as a text of its own does."""
        if tokens.documents is None:
            return None
        begun = tokens._replace(documents=from_mark(tokens.documents))
        return attention_mask.bias(attention_mask.visible(begun).tril())

    def local_features(self, tokens: Tokens) -> Tensor:
        """Of each token: [B, T] -> [B, T, D]."""
        return self.hidden(tokens)

    def features(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, D]: the mean of the tokens, or the last one, which has seen all others."""
        return (text_base.mean if self.pool == "mean" else text_base.last)(self.hidden(tokens), tokens.mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the token after each of the chosen positions: [n, D] -> float32 [n, V]."""
        return self.net.lm_head(hidden).float()

    def next_tokens(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """(logits [n, V], the tokens themselves [n]) of every token but the first from those before it; without padding."""
        there = tokens.mask[:, 1:]
        return self.logits(self.hidden(tokens)[:, :-1][there]), tokens.ids[:, 1:][there]

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, noise: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
    ) -> Tensor:
        """Samples what follows: [B, n] and uniform noise [B, m] -> [B, n + m]. Raises UserError when that is too long."""
        text_base.fits(self.length, tokens.shape[1] + noise.shape[1])
        new, cache = tokens, DynamicCache()  # given by its place, as its name has changed in transformers
        for column in noise.T:
            output = self.net(None, cache, inputs_embeds=self.net.transformer.wte(new), use_cache=True, logits_to_keep=1)
            new = sampling.sample(output.logits[:, -1], column, temperature, top_k, top_p)[:, None]
            tokens = torch.cat([tokens, new], 1)
        return tokens

    @property
    def embeddings(self) -> nn.Module:
        """Of words."""
        return self.net.transformer.wte

    def attention(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, T, T]: how much each token looks at each."""
        mask = self.mask(tokens)  # where there is none, the library wants to know of padding
        return attention_mask.attention_weights(self.net, self.net.transformer, tokens.ids, tokens.mask if mask is None else mask)

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(transformers' own model of these weights, {}); None where the tokens' mean is what is classified. The library's
        classifier of whole texts has no bias: the last normalisation, which it alone reads, takes that of the head."""
        whole_texts = task in ("classes", "several")
        if whole_texts and (self.pool == "mean" or len(classes) > self.width):
            return None
        net = library_format.with_text_head(self.net.transformer, WHOLE[task], head, classes, task)
        if whole_texts:
            shift = torch.linalg.pinv(head.weight.detach().double()) @ head.bias.detach().double()
            net.transformer.ln_f.bias.data += shift.to(net.transformer.ln_f.bias)
        return net, {}

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the head, whose weights are the token embeddings."""
        self.net.lm_head = nn.Identity()

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if ".wte." in name or ".wpe." in name:
            return 0
        block = re.search(r"\.h\.(\d+)\.", name)
        return int(block[1]) + 1 if block else self.depth + 1

    def save(self, folder: Path, tokenizer: Any) -> None:
        """A folder that transformers' GPT-2 classes and `AutoTokenizer` read; replaced as a whole. `tokenizer` may be None."""
        library_format.save(self.net, folder, {}, None, tokenizer=tokenizer)

    def load(self, folder: Path) -> None:
        """Also weights for longer texts, see `adjusted`. Raises UserError when a tensor does not fit."""
        library_format.load(self.net, folder, self.adjusted(library_format.tensors_of(folder))[0])

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder for longer texts as this one takes them, and notes on what was changed."""
        return text_base.truncate_positions(tensors, "wpe.weight", self.length)


FAMILY = Family(resolve=resolve, build=build, shape=SHAPE, framing=FRAMING, tokenizer=TOKENIZER, framed=FRAMED, sizes=SIZES)
