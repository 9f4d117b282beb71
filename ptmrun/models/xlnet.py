"""XLNet (Yang et al. 2019, arXiv:1906.08237): transformers' XLNetLMHeadModel, with its two streams for permuted prediction.

It has no table of positions: attention sees how far two tokens are apart, as in Transformer-XL, so weights fit any length.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import XLNetConfig, XLNetForQuestionAnsweringSimple, XLNetForTokenClassification, XLNetLMHeadModel

from ptmrun.batch import Framing, TextSpec, Tokens, Vocabulary
from ptmrun.models import attention_mask, base, library_format, local_attention_init, text_base
from ptmrun.models.base import Family

SIZES = {"tiny": (128, 2), "mini": (256, 4), "small": (512, 4), "base": (768, 12)}  # width, layers
TOKENIZER = "unigram"
WHOLE: dict[str, Any] = {
    "tags": XLNetForTokenClassification,
    "answers": XLNetForQuestionAnsweringSimple,
}  # the library's own models
SHAPE = ("d_model", "n_layer", "n_head")  # in a folder's config.json
FRAMING = Framing(  # <cls> is a segment of its own, as in transformers' XLNetTokenizer
    special={
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<cls>",
        "sep_token": "<sep>",
        "mask_token": "<mask>",
    },
    single="$A <sep> <cls>:2",
    pair="$A <sep> $B:1 <sep>:1 <cls>:2",
)


def resolve(options: Any, spec: TextSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why)."""
    return local_attention_init.resolve(options, SIZES)


def build(options: Any, spec: TextSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options. Its attention is its own, whatever `attention` says."""
    vocabulary, length = spec
    width, depth, heads = text_base.shape(options, SIZES)
    config = XLNetConfig(
        vocab_size=vocabulary.size,
        d_model=width,
        n_layer=depth,
        n_head=heads,
        d_inner=4 * width,
        dropout=options.dropout,
        summary_last_dropout=options.dropout,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.start,
        eos_token_id=vocabulary.end,
    )
    encoder = Encoder(config, vocabulary, length, options.pool, text_base.named("xlnet", options))
    if options.initial == "neighbours":
        local_attention_init.look_by_distance(encoder.xlnet.transformer)
    return encoder


class Encoder(base.Encoder):
    """The library's weights, computed so that only targets have queries, and distances are projected once for a batch."""

    attends = True
    trims = True
    why_no_classifier = "its own takes the last place in a batch, padding or not"

    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "feed_forward": r".*\.ff\.layer_2",
    }

    def __init__(self, config: XLNetConfig, vocabulary: Vocabulary, length: int, pool: str, kind: str):
        super().__init__()
        self.width, self.depth = config.d_model, config.n_layer
        self.vocabulary, self.length, self.pool, self.kind = vocabulary, length, pool, kind
        self.xlnet = XLNetLMHeadModel(config)

    @property
    def net(self) -> XLNetLMHeadModel:
        """The library's network."""
        return self.xlnet

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(transformers' own model of these weights, {}); None for whole texts."""
        if task not in WHOLE:
            return None
        return library_format.with_text_head(self.xlnet.transformer, WHOLE[task], head, classes, task), {}

    @property
    def embeddings(self) -> nn.Module:
        """Of words."""
        return self.xlnet.transformer.word_embedding

    def embedded(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Word embeddings [B, T, D], and the sines of how far a key is before its query, from T to 1 - T: [2T, D]."""
        body, length = self.xlnet.transformer, tokens.ids.shape[1]
        sines = body.relative_positional_encoding(length, length, device=tokens.ids.device)[:, 0]
        return body.dropout(body.word_embedding(tokens.ids)), body.dropout(sines)

    def hidden(self, tokens: Tokens) -> Tensor:
        """The last layer, every token seeing all of its text: -> [B, T, D]."""
        body = self.xlnet.transformer
        content, sines = self.embedded(tokens)
        blocked, apart = ~attention_mask.visible(tokens), segments_differ(tokens)
        for layer in body.layer:
            content = layer.ff(attend(layer.rel_attn, content, *seen(layer.rel_attn, content, sines), blocked, apart))
        return body.dropout(content)

    def permuted(self, tokens: Tokens, perm_mask: Tensor, target_mapping: Tensor) -> Tensor:
        """The query stream, which knows its place but not its token: -> [B, P, D].

        perm_mask [B, T, T] bool: i may not see j, and who may not see itself does so in the content stream alone;
        target_mapping [B, P, T]: one at the place of each query.
        """
        body = self.xlnet.transformer
        content, sines = self.embedded(tokens)
        places = target_mapping.argmax(-1)
        query = body.dropout(body.mask_emb.expand(*places.shape, -1))
        same = torch.eye(content.shape[1], dtype=torch.bool, device=content.device)
        blocked, apart = perm_mask | ~attention_mask.visible(tokens), segments_differ(tokens)
        rows = places[..., None].expand(-1, -1, content.shape[1])
        blocked_here, apart_here = blocked.gather(1, rows), apart.gather(1, rows)
        for i, layer in enumerate(body.layer, 1):
            keys = seen(layer.rel_attn, content, sines)
            query = layer.ff(attend(layer.rel_attn, query, *keys, blocked_here, apart_here, places))
            if i < self.depth:  # nobody reads what the last layer would make of the content
                content = layer.ff(attend(layer.rel_attn, content, *keys, blocked & ~same, apart))
        return body.dropout(query)

    def attention(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, T, T]: how much each token looks at each."""
        unseen = (~attention_mask.visible(tokens)).float()
        body = self.xlnet.transformer
        return attention_mask.attention_weights(self.xlnet, body, tokens.ids, None, perm_mask=unseen, token_type_ids=tokens.types)

    def local_features(self, tokens: Tokens) -> Tensor:
        """Of each token: [B, T] -> [B, T, D]."""
        return self.hidden(tokens)

    def features(self, tokens: Tokens) -> Tensor:
        """-> [B, D]: the mean of the tokens, or the last one, <cls>."""
        return (text_base.mean if self.pool == "mean" else text_base.last)(self.hidden(tokens), tokens.mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """By the library's head: [n, D] -> float32 [n, V]."""
        return self.xlnet.lm_loss(hidden).float()

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the head; and nothing trains the query stream's first vector."""
        self.xlnet.lm_loss = nn.Identity()
        self.xlnet.transformer.mask_emb.requires_grad_(False)

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if "word_embedding" in name or "mask_emb" in name:
            return 0
        layer = re.search(r"\.layer\.(\d+)\.", name)
        return int(layer[1]) + 1 if layer else self.depth + 1

    def save(self, folder: Path, tokenizer: Any) -> None:
        """A folder that transformers' XLNetLMHeadModel and AutoTokenizer read; replaced as a whole."""
        library_format.save(self.xlnet, folder, {}, None, tokenizer=tokenizer)

    def load(self, folder: Path) -> None:
        """What `save` wrote. Raises UserError when a tensor is missing, unexpected or misshapen."""
        library_format.load(self.xlnet, folder, library_format.tensors_of(folder))

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights from texts of another length, as they are."""
        return tensors, []


def segments_differ(tokens: Tokens) -> Tensor:
    """-> [B, T, T] bool"""
    return tokens.types[:, :, None] != tokens.types[:, None]


def seen(attention: Any, content: Tensor, sines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of the tokens, keys of the distances: [B, T, D], [2T, D] -> [B, n, T, d] twice, [n, 2T, d]."""
    return heads(content, attention.k), heads(content, attention.v), heads(sines, attention.r)


def heads(hidden: Tensor, weight: Tensor) -> Tensor:
    """[..., T, D] by a weight [D, n, d] -> [..., n, T, d]"""
    return (hidden @ weight.flatten(1)).unflatten(-1, weight.shape[1:]).transpose(-3, -2)


def attend(
    attention: Any,
    hidden: Tensor,
    keys: Tensor,
    values: Tensor,
    distances: Tensor,
    blocked: Tensor,
    apart: Tensor,
    places: Tensor | None = None,
) -> Tensor:
    """XLNetRelativeAttention.forward of queries [B, Q, D] at places [B, Q], without them at every one of T: -> [B, Q, D].

    What `seen` gave; blocked, apart [B, Q, T] bool: which tokens are not seen, and which are of another segment. The library adds
    q s_0 to the scores of the query's own segment and q s_1 to others, here it is q (s_1 - s_0): the softmax sees no difference.
    """
    query = heads(hidden, attention.q)
    by_content = (query + attention.r_w_bias[:, None]) @ keys.transpose(-1, -2)
    by_distance = shifted((query + attention.r_r_bias[:, None]) @ distances.transpose(-1, -2), places)
    step = (attention.seg_embed[1] - attention.seg_embed[0])[..., None]
    by_segment = ((query + attention.r_s_bias[:, None]) @ step) * apart[:, None]
    scores = (by_content + by_distance + by_segment) * attention.scale
    weights = attention.dropout(scores.masked_fill(blocked[:, None], torch.finfo(scores.dtype).min).softmax(-1))
    mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2) @ attention.o.flatten(1).T
    return attention.layer_norm(attention.dropout(mixed) + hidden)


def shifted(scores: Tensor, places: Tensor | None) -> Tensor:
    """From scores by distance to scores by key: [B, n, Q, 2T] -> [B, n, Q, T].

    Column T - d belongs to the key that is d before the query. Without places, one query at each of the T, this is a view.
    """
    length = scores.shape[-1] // 2
    if places is None:
        return scores.flatten(2)[..., length:].unflatten(2, (length, 2 * length - 1))[..., :length]
    columns = length - places[..., None] + torch.arange(length, device=scores.device)
    return scores.gather(-1, columns[:, None].expand(-1, scores.shape[1], -1, -1))


FAMILY = Family(resolve=resolve, build=build, shape=SHAPE, framing=FRAMING, tokenizer=TOKENIZER, sizes=SIZES)
