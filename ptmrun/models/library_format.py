"""Encoders on disk, in their library's own format: a transformers folder, or torchvision's names in a safetensors file.

transformers takes seconds to import, so only what needs it does.
"""

import contextlib
import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from ptmrun.errors import UserError
from ptmrun.storage import tensor_files
from ptmrun.storage.files import remove

FITTED = "fitted.safetensors"  # what was learned from images before training, and has no place in the library's files


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and load reports: what matters is checked and said here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def processor(side: int, mean: list[float], std: list[float], kind: str = "ViTImageProcessor") -> dict[str, Any]:
    """What transformers' AutoImageProcessor reads: how an image becomes the model's input. ViT's for all families: it
    resizes the whole image, where others cut its middle out."""
    return {
        "image_processor_type": kind,
        "do_convert_rgb": len(mean) == 3,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def save(
    net: nn.Module,
    folder: Path,
    about: dict[str, Any],
    preprocessing: dict[str, Any] | None,
    fitted: dict[str, Tensor] | None = None,
    tokenizer: Any = None,
) -> None:
    """A folder with model.safetensors, config.json (`about`, where the library does not write its own), for images
    preprocessor_config.json, for text what `tokenizer.save(folder)` writes, and FITTED where the encoder has buffers of its own;
    replaced as a whole."""
    part = folder.with_name(f".{folder.name}.part")
    remove(part)  # a left-over, or a link that leads elsewhere
    if hasattr(net, "save_pretrained"):
        try:
            with quiet():
                net.save_pretrained(part)  # type: ignore[operator]
            tensor_files.save(part / "model.safetensors", tensors_of(part))  # with a digest
        except SafetensorError as error:  # the disk is full
            raise UserError(f"{folder}: cannot be written: {error}") from None
    else:
        tensor_files.save(part / "model.safetensors", net.state_dict())
        (part / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    if fitted:
        tensor_files.save(part / FITTED, fitted)
    if preprocessing:
        (part / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
    if tokenizer:
        tokenizer.save(part)
    remove(folder)
    os.replace(part, folder)


def with_head(net: Any, kind: Any, head: nn.Linear, classes: list[str], side: int) -> Any:
    """transformers' classifier `kind` of this network and a linear layer, for images of `side` pixels."""
    config = copy.deepcopy(net.config)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    config.image_size = side
    whole = kind(config)
    getattr(whole, whole.base_model_prefix).load_state_dict(net.state_dict())
    [last] = [m for m in whole.classifier.modules() if isinstance(m, nn.Linear)]
    last.load_state_dict(head.state_dict())
    return whole


def with_text_head(body: Any, kind: Any, head: nn.Linear, classes: list[str], task: str) -> Any:
    """transformers' model `kind` of this body and a linear layer on its hidden states, for a task of downstream.base.Model."""
    config = copy.deepcopy(body.config)
    if classes:
        config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    config.problem_type = {"classes": "single_label_classification", "several": "multi_label_classification"}.get(task)
    whole = kind(config)
    inner = getattr(whole, whole.base_model_prefix)
    tensor_files.into(inner, {k: v for k, v in body.state_dict().items() if k in inner.state_dict()}, Path(kind.__name__))
    [last] = [m for name, m in whole.named_children() if name != whole.base_model_prefix and isinstance(m, nn.Linear)]
    last.weight.data.copy_(head.weight)
    if last.bias is not None:
        last.bias.data.copy_(head.bias)
    return whole


def tensors_of(folder: Path) -> dict[str, Any]:
    """What stands in a folder that `save` wrote."""
    return tensor_files.load(folder / "model.safetensors")[0]


def load(net: nn.Module, folder: Path, tensors: dict[str, Any], **options: Any) -> None:
    """The tensors of a folder that `save` wrote. Raises UserError when one is missing, unexpected or of another shape."""
    file = folder / "model.safetensors"
    if wrong := [
        k for k, v in net.state_dict().items() if k in tensors and v.is_floating_point() != tensors[k].is_floating_point()
    ]:
        raise UserError(f"{file}: does not fit the model: {wrong[0]} is {tensors[wrong[0]].dtype}")
    if hasattr(net, "from_pretrained"):
        tensors = renamed(net, tensors, folder, options)
    tensor_files.into(net, tensors, file)


def renamed(net: Any, tensors: dict[str, Any], folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The tensors under the names that `net` has. Raises UserError for any that is missing, unexpected or of another shape."""
    if wrong := [name for name, value in tensors.items() if not value.is_floating_point() and name not in net.state_dict()]:
        raise UserError(f"{folder}: does not fit the model: {wrong[0]} is {tensors[wrong[0]].dtype}")
    try:
        state, info = translated(net, tensors, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: does not fit the model: {str(error).strip().splitlines()[-1]}") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name[0] if isinstance(name, tuple) else name) for name in info[kind]):
            raise UserError(f"{folder}: does not fit the model: {kind.replace('_', ' ')} {', '.join(names[:3])}")
    return state


def translated(net: Any, tensors: dict[str, Any], **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, what is missing, unexpected, mismatched): transformers writes some models with older names than it uses, and its
    own loader translates them. Our own config and these tensors go in; no other file is looked at."""
    with quiet():
        loaded, info = type(net).from_pretrained(
            None,
            config=net.config,
            state_dict=tensors,
            ignore_mismatched_sizes=True,  # the caller lists them
            output_loading_info=True,
            **options,
        )
    return loaded.state_dict(), info
