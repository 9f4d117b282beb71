"""The other side of the comparison in bench.py: transformers' Trainer, set up as its examples run_mim.py and run_mae.py do.

A datasets.Dataset of images; per image RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize and (MIM) a mask of NumPy's;
fp32, no loader processes, Trainer's fused AdamW. What would make it slower or learn less for no good reason is left out: images
stay gray instead of becoming RGB, nothing is saved, model sizes and the optimizer's settings are those of ptmrun's defaults.
"""

import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining
from transformers.trainer_callback import PrinterCallback

from ptmrun.config import Loop


def images_of(split: Any) -> datasets.Dataset:
    """The uint8 images of a split as the `image` column of a data set, encoded as on the hub."""
    pictures = [Image.fromarray(x[0].numpy()) for batch in split.all() for x in batch]
    return datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))


def model_of(objective: Any) -> torch.nn.Module:
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


def train(objective: Any, data: Any, images: datasets.Dataset, loop: Loop, steps: int, folder: Path, seed: int) -> tuple:
    """(CPU seconds of Trainer.train, the trained model)."""
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

    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=loop.batch_size,
        learning_rate=loop.lr,
        weight_decay=loop.weight_decay,
        adam_beta1=loop.beta1,
        adam_beta2=loop.beta2,
        max_grad_norm=loop.clip,
        lr_scheduler_type=loop.schedule,
        warmup_steps=round(loop.warmup * steps),
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(seed)
    trainer = Trainer(
        model=model_of(objective), args=settings, train_dataset=images.with_transform(preprocess), data_collator=collate
    )
    trainer.remove_callback(PrinterCallback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.process_time()
        trainer.train()
        return time.process_time() - start, trainer.model


@torch.no_grad()
def loss(model: torch.nn.Module, objective: Any, batch: dict[str, Any]) -> float:
    """Its loss on a batch, with the patches hidden that the objective hides."""
    model.eval()
    if hasattr(objective, "decoder"):
        return float(model(batch["inputs"], noise=batch["rows"].uniform("mask", objective.patches)).loss)
    return float(model(batch["inputs"], bool_masked_pos=objective.mask(batch)).loss)
