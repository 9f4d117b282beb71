"""The other side of the comparison in bench.py: transformers' Trainer, set up as its examples run_mim.py, run_mae.py, run_mlm.py
and run_clm.py do, in fp32, without loader processes, with Trainer's fused AdamW.

Images: a datasets.Dataset of them; per image RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize and (MIM) a mask of
NumPy's. Text: a datasets.Dataset of documents, tokenised by `map` and joined by their `group_texts` into full sequences;
DataCollatorForLanguageModeling hides tokens, and the model computes the logits of all positions. Preparing that data set is not
timed: ptmrun does it once too.

What would make it slower or learn less for no good reason is left out: images stay gray instead of becoming RGB, the mask of
special tokens is kept for the collator, nothing is saved, model sizes, tokens and the optimizer's settings are those of ptmrun's
defaults.
"""

import time
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import transforms
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    default_data_collator,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from ptmrun.config.schema import Loop
from ptmrun.loss import Loss

datasets.disable_progress_bars()
logging.set_verbosity_error()  # GPT-2's says that it takes its default loss


def train(
    make: Callable[[], nn.Module], data: datasets.Dataset, collate: Callable, loop: Loop, folder: Path, seed: int
) -> tuple[float, nn.Module]:
    """(CPU seconds of Trainer.train, the trained model)."""
    assert loop.steps is not None
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        seed=seed,
        max_steps=loop.steps,
        per_device_train_batch_size=loop.batch_size,
        learning_rate=loop.lr,
        weight_decay=loop.weight_decay,
        adam_beta1=loop.beta1,
        adam_beta2=loop.beta2,
        max_grad_norm=loop.clip,
        lr_scheduler_type=loop.schedule,
        warmup_steps=round(loop.warmup * loop.steps),
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(seed)
    trainer = Trainer(model=make(), args=settings, train_dataset=data, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        trainer.train()
        return time.process_time() - start, trainer.model


def images_of(split: Any) -> datasets.Dataset:
    """The uint8 images of a split as the `image` column of a data set, encoded as on the hub."""
    pictures = [Image.fromarray(x[0].numpy()) for batch in split.all() for x in batch]
    return datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))


def image_model(objective: Any) -> nn.Module:
    """transformers' own model for the objective, of the same sizes and with its own initial weights."""
    sizes = objective.encoder.vit.config.to_dict()
    sizes = {k: sizes[k] for k in ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers")} | {
        k: sizes[k] for k in ("num_attention_heads", "intermediate_size", "hidden_dropout_prob")
    }
    if not hasattr(objective, "decoder"):
        return ViTForMaskedImageModeling(ViTConfig(**sizes, encoder_stride=sizes["patch_size"]))
    decoder = {k: v for k, v in objective.decoder.config.to_dict().items() if k.startswith("decoder_")}
    mask_ratio = 1 - objective.visible / objective.patches
    return ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, mask_ratio=mask_ratio, norm_pix_loss=True))


def on_images(
    objective: Any, data: Any, images: datasets.Dataset, loop: Loop, folder: Path, seed: int
) -> tuple[float, nn.Module]:
    """(CPU seconds, the trained model)."""
    masked = not hasattr(objective, "decoder")
    scale = (0.67, 1.0) if masked else (0.2, 1.0)
    mode = transforms.InterpolationMode.BILINEAR if masked else transforms.InterpolationMode.BICUBIC
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(data.size, scale=scale, interpolation=mode),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean.tolist(), data.std.tolist()),
        ]
    )

    def mask() -> torch.Tensor:
        order = np.random.permutation(objective.patches)
        chosen = np.zeros(objective.patches, dtype=int)
        chosen[order[: objective.hidden]] = 1
        return torch.tensor(chosen)

    def preprocess(examples: dict[str, list]) -> dict[str, list]:
        made: dict[str, list] = {"pixel_values": [transform(image) for image in examples["image"]]}
        return made | ({"bool_masked_pos": [mask() for _ in examples["image"]]} if masked else {})

    def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

    return train(lambda: image_model(objective), images.with_transform(preprocess), collate, loop, folder, seed)


def image_loss(model: nn.Module, objective: Any, batch: dict[str, Any]) -> float:
    """Its loss on a batch, with the patches hidden that the objective hides."""
    if hasattr(objective, "decoder"):
        return float(model(batch["inputs"], noise=batch["rows"].uniform("mask", objective.patches)).loss)
    return float(model(batch["inputs"], bool_masked_pos=objective.mask(batch)).loss)


def sequences_of(documents: list[str], tokenizer: Any, length: int, masked: bool) -> datasets.Dataset:
    """Full sequences of documents, as the examples make them."""

    def tokenise(examples: dict[str, list]) -> dict[str, list]:
        return tokenizer(examples["text"], return_special_tokens_mask=masked, verbose=False)

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {k: list(chain(*v)) for k, v in examples.items()}
        total = len(joined["input_ids"]) // length * length
        cut = {k: [x[i : i + length] for i in range(0, total, length)] for k, x in joined.items()}
        return cut if masked else {**cut, "labels": cut["input_ids"].copy()}

    tokens = datasets.Dataset.from_dict({"text": documents}).map(tokenise, batched=True, remove_columns=["text"])
    return tokens.map(group_texts, batched=True)


def text_model(objective: Any) -> nn.Module:
    """transformers' own model for the objective, of the same sizes and with its own initial weights, attention and dropout."""
    sizes, pad = objective.encoder.net.config.to_dict(), objective.encoder.vocabulary.pad
    if hasattr(objective, "masking"):
        keys = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"]
        return BertForMaskedLM(BertConfig(pad_token_id=pad, **{k: sizes[k] for k in ["vocab_size", *keys]}))
    keys = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "bos_token_id", "eos_token_id"]
    return GPT2LMHeadModel(GPT2Config(pad_token_id=pad, **{k: sizes[k] for k in keys}))


def on_texts(
    objective: Any, sequences: datasets.Dataset, tokenizer: Any, loop: Loop, folder: Path, seed: int
) -> tuple[float, nn.Module]:
    """(CPU seconds, the trained model)."""
    masked = hasattr(objective, "masking")
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15) if masked else default_data_collator
    return train(lambda: text_model(objective), sequences, collate, loop, folder, seed)


def text_loss(model: nn.Module, objective: Any, batch: dict[str, Any]) -> Loss:
    """Its loss on a batch, with the tokens hidden that the objective hides."""
    tokens = batch["inputs"]
    if not hasattr(objective, "masking"):
        logits, wanted = model(input_ids=tokens.ids).logits[:, :-1].flatten(0, 1), tokens.ids[:, 1:].flatten()
    else:
        shown, hidden = objective.masking(tokens, batch["rows"])
        logits, wanted = model(input_ids=shown.ids, token_type_ids=shown.types).logits[hidden], tokens.ids[hidden]
    return Loss(F.cross_entropy(logits, wanted, reduction="sum"), len(wanted))
