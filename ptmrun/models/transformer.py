"""Transformer with an encoder and a decoder (Vaswani et al. 2017), as BART has it (Lewis et al. 2020, arXiv:1910.13461):
transformers' BartForConditionalGeneration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartConfig, BartForConditionalGeneration
from transformers.models.bart.modeling_bart import shift_tokens_right

from ptmrun.batch import Framing, TextSpec, Tokens, Vocabulary
from ptmrun.errors import UserError
from ptmrun.models import attention_mask, base, library_format, local_attention_init, text_base
from ptmrun.models.base import Family

SIZES = {"tiny": (128, 2), "mini": (256, 3), "small": (512, 6), "base": (768, 6)}  # width, layers of encoder and of decoder each
TOKENIZER = "bpe"
SHAPE = ("d_model", "encoder_layers", "encoder_attention_heads")  # in a folder's config.json
FRAMING = Framing(
    special={
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    },
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
)


def resolve(options: Any, spec: TextSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why)."""
    return local_attention_init.resolve(options, SIZES)


def build(options: Any, spec: TextSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options."""
    vocabulary, length = spec
    width, depth, heads = text_base.shape(options, SIZES)
    config = BartConfig(
        vocab_size=vocabulary.size,
        max_position_embeddings=length,
        d_model=width,
        encoder_layers=depth,
        decoder_layers=depth,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        dropout=options.dropout,
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.start,
        eos_token_id=vocabulary.end,
        decoder_start_token_id=vocabulary.end,
        forced_eos_token_id=vocabulary.end,
        attn_implementation=attention,
    )
    encoder = Encoder(config, vocabulary, length, text_base.named("transformer", options))
    if options.initial == "neighbours":
        local_attention_init.look_across(encoder.bart.model)
    return encoder


class Encoder(base.Encoder):
    """Features are the encoder's; the decoder serves objectives that write text, and goes with `trim`."""

    attends = True
    trims = True

    places: Mapping[str, str] = {  # where fine-tuning methods put what they add
        "values": r".*\.(self_attn|encoder_attn)\.(k_proj|v_proj)",
        "attention": r".*\.(self_attn|encoder_attn)\.out_proj",
        "feed_forward": r".*\.layers\.\d+\.fc2",
    }

    def __init__(self, config: BartConfig, vocabulary: Vocabulary, length: int, kind: str):
        super().__init__()
        self.width, self.depth = config.d_model, config.encoder_layers + config.decoder_layers
        self.vocabulary, self.length, self.kind = vocabulary, length, kind
        self.bart = BartForConditionalGeneration(config)

    @property
    def net(self) -> BartForConditionalGeneration:
        """The library's network."""
        return self.bart

    @property
    def embeddings(self) -> nn.Module:
        """Of words."""
        return self.bart.model.encoder.embed_tokens

    def attention(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, T, T]: how much each token of the source looks at each."""
        return attention_mask.attention_weights(
            self.bart, self.bart.model.encoder, tokens.ids, attention_mask.library_mask(tokens)
        )

    def hidden(self, tokens: Tokens) -> Tensor:
        """The encoder's last layer: -> [B, T, D]."""
        return self.bart.model.encoder(tokens.ids, attention_mask=attention_mask.library_mask(tokens)).last_hidden_state

    def local_features(self, tokens: Tokens) -> Tensor:
        """Of each token: [B, T] -> [B, T, D]."""
        return self.hidden(tokens)

    def features(self, tokens: Tokens) -> Tensor:
        """-> [B, D]: the mean of the tokens."""
        return text_base.mean(self.hidden(tokens), tokens.mask)

    def decoded(self, source: Tokens, target: Tokens) -> Tensor:
        """The decoder's last layer, where each place stands before the target token that it predicts: -> [B, T, D].

        Its input is the target, moved right by one behind an end token, as in the library; so that of each document apart begins.
        """
        before = shift_tokens_right(target.ids, self.vocabulary.pad, self.vocabulary.end)
        own, across = None, source.mask
        if source.documents is not None and target.documents is not None:
            own = attention_mask.bias(attention_mask.visible(target).tril())
            across = attention_mask.bias((target.documents[:, :, None] == source.documents[:, None]) & source.mask[:, None])
        return self.bart.model.decoder(
            before,
            attention_mask=own,
            encoder_hidden_states=self.hidden(source),
            encoder_attention_mask=across,
            use_cache=False,
        ).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """By the library's head: [n, D] -> float32 [n, V]."""
        return (self.bart.lm_head(hidden) + self.bart.final_logits_bias).float()

    @torch.no_grad()
    def translate(self, source: Tokens, beams: int, length: int) -> Tensor:
        """What the decoder writes by beam search, at most `length` tokens: -> [B, n] int64, padded at the end."""
        written = self.bart.generate(
            source.ids,
            attention_mask=source.mask.long(),
            num_beams=beams,
            do_sample=False,
            early_stopping=beams > 1,
            max_new_tokens=min(length, self.length),
        )
        return written[:, 1:]  # without the token that starts the decoder

    def trim(self) -> None:
        """Leaves out for good what `features` does not need: the decoder and the head."""
        self.bart.model.decoder, self.bart.lm_head = nn.Identity(), nn.Identity()
        self.depth = len(self.bart.model.encoder.layers)

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits; the decoder's layers are above the encoder's."""
        if "embed" in name or ".shared." in name:
            return 0
        layer = re.search(r"\.(encoder|decoder)\.layers\.(\d+)\.", name)
        if not layer:
            return self.depth + 1
        return int(layer[2]) + 1 + (layer[1] == "decoder") * len(self.bart.model.encoder.layers)

    def save(self, folder: Path, tokenizer: Any) -> None:
        """A folder that transformers' BartForConditionalGeneration and AutoTokenizer read; replaced as a whole."""
        library_format.save(self.bart, folder, {}, None, tokenizer=tokenizer)

    def load(self, folder: Path) -> None:
        """What `save` wrote, also for longer texts, see `adjusted`. Raises UserError when a tensor is missing or misshapen."""
        library_format.load(self.bart, folder, self.adjusted(library_format.tensors_of(folder))[0])

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights for longer texts as this encoder takes them, without the positions behind its own; notes on that.

        Raises UserError when they are for shorter ones: of places that were never trained there is nothing to go by.
        """
        changed, notes = dict(tensors), []
        wanted = self.bart.model.encoder.embed_positions
        for name, value in tensors.items():
            if name.endswith("embed_positions.weight") and value.ndim == 2 and len(value) != len(wanted.weight):
                there = len(value) - wanted.offset
                if there < self.length:
                    raise UserError(f"model.length={self.length}: the weights are for {there} tokens; choose at most that")
                changed[name] = value[: len(wanted.weight)]
                notes.append(f"positions ({name.split('.')[-3]}): the first {self.length} of {there}")
        return changed, notes


FAMILY = Family(resolve=resolve, build=build, shape=SHAPE, framing=FRAMING, tokenizer=TOKENIZER, sizes=SIZES)
