"""BERT (Devlin et al. 2019, arXiv:1810.04805): transformers' BertForPreTraining, with both of its heads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from ptmrun.batch import Framing, TextSpec, Tokens, Vocabulary
from ptmrun.models import attention_mask, base, library_format, local_attention_init, text_base
from ptmrun.models.base import Family

SIZES = {  # width, blocks; heads of 64. Google's miniatures (Turc et al. 2019, arXiv:1908.08962) and BERT-base
    "tiny": (128, 2),
    "mini": (256, 4),
    "small": (512, 4),
    "medium": (512, 8),
    "base": (768, 12),
}
FRAMING = Framing(
    {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
    "[CLS] $A [SEP]",
    "[CLS] $A [SEP] $B:1 [SEP]:1",
)
TOKENIZER = "wordpiece"
SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # in a folder's config.json
WHOLE: dict[str, Any] = {  # the library's own models for tasks
    "classes": BertForSequenceClassification,
    "several": BertForSequenceClassification,
    "tags": BertForTokenClassification,
    "answers": BertForQuestionAnswering,
}


def resolve(options: Any, spec: TextSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why)."""
    return local_attention_init.resolve(options, SIZES)


def build(options: Any, spec: TextSpec, attention: str) -> "Encoder":
    """An encoder of texts of at most `length` tokens, from resolved options."""
    vocabulary, length = spec
    width, depth, heads = text_base.shape(options, SIZES)
    config = BertConfig(
        vocab_size=vocabulary.size,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
        max_position_embeddings=length,
        pad_token_id=vocabulary.pad,
        attn_implementation=attention,
    )
    encoder = Encoder(config, vocabulary, options.pool, text_base.named("bert", options))
    if options.initial == "neighbours":
        local_attention_init.look(encoder.net.bert)
    return encoder


class Encoder(base.Encoder):
    """`net` is the library's network, its parameter names kept."""

    attends = True
    trims = True
    unit = "token"
    why_no_classifier = "its own pools the first token, model.pool=cls"
    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.attention\.self\.(key|value)",
        "attention": r".*\.attention\.output\.dense",
        "feed_forward": r".*\.layer\.\d+\.output\.dense",
    }

    def __init__(self, config: BertConfig, vocabulary: Vocabulary, pool: str, kind: str):
        super().__init__()
        self.width, self.depth, self.length = config.hidden_size, config.num_hidden_layers, config.max_position_embeddings
        self.vocabulary, self.pool, self.kind = vocabulary, pool, kind
        self.net = BertForPreTraining(config)

    def hidden(self, tokens: Tokens) -> Tensor:
        """What the last block gives at every token: [B, T] -> [B, T, D]."""
        seen = attention_mask.library_mask(tokens)
        return self.net.bert(tokens.ids, attention_mask=seen, token_type_ids=tokens.types).last_hidden_state

    def local_features(self, tokens: Tokens) -> Tensor:
        """Of each token: [B, T] -> [B, T, D]."""
        return self.hidden(tokens)

    def features(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, D]: the mean of the tokens, or what the library's pooler makes of the first one, as published."""
        hidden = self.hidden(tokens)
        return text_base.mean(hidden, tokens.mask) if self.pool == "mean" else self.net.bert.pooler(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the token at each of the chosen positions: [n, D] -> float32 [n, V]."""
        return self.net.cls.predictions(hidden).float()

    def next_sentence(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> float32 [B, 2]: the second text follows the first, or it does not."""
        return self.net.cls.seq_relationship(self.net.bert.pooler(hidden)).float()

    @property
    def embeddings(self) -> nn.Module:
        """Of words."""
        return self.net.bert.embeddings.word_embeddings

    def attention(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, T, T]: how much each token looks at each."""
        seen = attention_mask.library_mask(tokens)
        return attention_mask.attention_weights(self.net, self.net.bert, tokens.ids, seen, token_type_ids=tokens.types)

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(transformers' own model of these weights, {}); None where the tokens' mean is what is classified."""
        if task in ("classes", "several") and self.pool == "mean":
            return None
        return library_format.with_text_head(self.net.bert, WHOLE[task], head, classes, task), {}

    @property
    def pair_head(self) -> list[nn.Module]:
        """What next-sentence prediction alone trains."""
        return [self.net.bert.pooler, self.net.cls.seq_relationship]

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the heads, and the pooler when tokens are averaged."""
        self.net.cls = nn.Identity()
        if self.pool == "mean":
            self.net.bert.pooler = None

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        if ".embeddings." in name:
            return 0
        layer = re.search(r"\.layer\.(\d+)\.", name)
        return int(layer[1]) + 1 if layer else self.depth + 1

    def save(self, folder: Path, tokenizer: Any) -> None:
        """A folder that transformers' BERT classes and `AutoTokenizer` read; replaced as a whole. `tokenizer` may be None."""
        library_format.save(self.net, folder, {}, None, tokenizer=tokenizer)

    def load(self, folder: Path) -> None:
        """Also weights for longer texts, see `adjusted`. Raises UserError when a tensor does not fit."""
        library_format.load(self.net, folder, self.adjusted(library_format.tensors_of(folder))[0])

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder for longer texts as this one takes them, and notes on what was changed."""
        return text_base.truncate_positions(tensors, "position_embeddings.weight", self.length)


FAMILY = Family(resolve=resolve, build=build, shape=SHAPE, framing=FRAMING, tokenizer=TOKENIZER, sizes=SIZES)
