"""The side of transformers' Trainer, images: a datasets.Dataset of them, encoded as on the hub; per image RandomResizedCrop,
RandomHorizontalFlip, ToTensor, Normalize and (MIM) a mask of NumPy's."""

from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining

from ptmrun import rng
from ptmrun.benchmarks.setting import CPU, Setting


def examples(one: Setting) -> tuple[datasets.Dataset, Any]:
    """(the training images, what makes a batch of some)."""
    data, objective = one.data, one.objective
    masked = not hasattr(objective, "decoder")
    mode = transforms.InterpolationMode.BILINEAR if masked else transforms.InterpolationMode.BICUBIC
    mean, std = data.processor(CPU).preprocessing
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(data.train.side, scale=(0.67 if masked else 0.2, 1.0), interpolation=mode),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
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

    images = datasets.Dataset.from_dict({"image": pictures(one)}, features=datasets.Features({"image": datasets.Image()}))
    return images.with_transform(preprocess), collate


def pictures(one: Setting) -> list[Image.Image]:
    """The training images, gray."""
    return [Image.fromarray(x[0].numpy()) for batch in one.data.train.all() for x in batch]


def model(objective: Any) -> nn.Module:
    """transformers' own model for the objective, of the same sizes and with its own initial weights."""
    sizes = objective.encoder.vit.config.to_dict()
    keys = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers")
    sizes = {k: sizes[k] for k in (*keys, "num_attention_heads", "intermediate_size", "hidden_dropout_prob")}
    if not hasattr(objective, "decoder"):
        return ViTForMaskedImageModeling(ViTConfig(**sizes, encoder_stride=sizes["patch_size"]))
    decoder = {k: v for k, v in objective.decoder.config.to_dict().items() if k.startswith("decoder_")}
    mask_ratio = 1 - objective.visible / objective.patches
    return ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, mask_ratio=mask_ratio, norm_pix_loss=True))


def losses(one: Setting, model: nn.Module) -> list[float]:
    """Of the objective and of the other model, on the held-out images with the patches hidden that the objective hides."""
    objective: Any = one.objective
    held = one.data.processor(CPU)(one.data.val.some(len(one.data.val)))
    batch = {"inputs": held, "rows": rng.BatchRandom(0, 0, 0, len(held), len(held))}
    hidden = (
        {"noise": batch["rows"].uniform("mask", objective.patches)}
        if hasattr(objective, "decoder")
        else {"bool_masked_pos": objective.mask(batch)}
    )
    loss, _ = objective(batch)
    return [float(loss.total / loss.n), float(model(held, **hidden).loss)]
