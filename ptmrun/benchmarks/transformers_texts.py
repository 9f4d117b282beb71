"""The side of transformers' Trainer, texts: a datasets.Dataset of documents in ptmrun's own tokens, tokenised by `map` and joined
by the examples' `group_texts` into full sequences; DataCollatorForLanguageModeling hides tokens, and the model computes the
logits of all positions. Preparing that data set is not timed: ptmrun does it once too."""

from itertools import chain, compress
from typing import Any

import datasets
import numpy as np
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    default_data_collator,
)
from transformers.utils import logging

from ptmrun import rng
from ptmrun.benchmarks.setting import Setting
from ptmrun.loss import Loss
from ptmrun.stages.networks import module_of

DRAWS = 4  # of the hidden tokens of held-out sequences
HELD = 1000  # sequences at most


def examples(one: Setting) -> tuple[datasets.Dataset, Any]:
    """(full sequences of the training documents, what makes a batch of some)."""
    datasets.disable_progress_bars()
    logging.set_verbosity_error()  # GPT-2's says that it takes its default loss
    blocks, masked = one.data.corpus.blocks, hasattr(one.objective, "masking")
    corpus, length = blocks.corpus, blocks.length
    tokenizer = corpus.tokenizer.fast
    whole = module_of(one.cfg, "dataset").read(one.cfg.dataset).parts["train"].documents()
    documents = list(compress(whole, np.isin(corpus.documents[:-1], corpus.spans[:, 0])))

    def tokenise(examples: dict[str, list]) -> dict[str, list]:
        return tokenizer(examples["text"], return_special_tokens_mask=masked, verbose=False)

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {k: list(chain(*v)) for k, v in examples.items()}
        total = len(joined["input_ids"]) // length * length
        cut = {k: [x[i : i + length] for i in range(0, total, length)] for k, x in joined.items()}
        return cut if masked else {**cut, "labels": cut["input_ids"].copy()}

    tokens = datasets.Dataset.from_dict({"text": documents}).map(tokenise, batched=True, remove_columns=["text"])
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15) if masked else default_data_collator
    return tokens.map(group_texts, batched=True), collate


def model(objective: Any) -> nn.Module:
    """transformers' own model for the objective, of the same sizes and with its own initial weights, attention and dropout."""
    sizes, pad = objective.encoder.net.config.to_dict(), objective.encoder.vocabulary.pad
    if hasattr(objective, "masking"):
        keys = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"]
        return BertForMaskedLM(BertConfig(pad_token_id=pad, **{k: sizes[k] for k in ["vocab_size", *keys]}))
    keys = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "bos_token_id", "eos_token_id"]
    return GPT2LMHeadModel(GPT2Config(pad_token_id=pad, **{k: sizes[k] for k in keys}))


def losses(one: Setting, model: nn.Module) -> list[float]:
    """Of the objective and of the other model, in nats a token, on held-out sequences with the tokens hidden that the objective
    hides."""
    held = next(one.data.val_corpus.all(HELD))
    count, draws = len(held.ids), DRAWS if hasattr(one.objective, "masking") else 1
    batches = [{"inputs": held, "rows": rng.BatchRandom(0, draw, 0, count, count)} for draw in range(draws)]
    sides = [one.objective(batch)[0] for batch in batches], [loss(model, one.objective, batch) for batch in batches]
    return [float(sum(x.total for x in side) / sum(x.n for x in side)) for side in sides]


def loss(model: nn.Module, objective: Any, batch: dict[str, Any]) -> Loss:
    tokens = batch["inputs"]
    if not hasattr(objective, "masking"):
        logits, wanted = model(input_ids=tokens.ids).logits[:, :-1].flatten(0, 1), tokens.ids[:, 1:].flatten()
    else:
        shown, hidden = objective.masking(tokens, batch["rows"])
        logits, wanted = model(input_ids=shown.ids, token_type_ids=shown.types).logits[hidden], tokens.ids[hidden]
    return Loss(F.cross_entropy(logits, wanted, reduction="sum"), len(wanted))
