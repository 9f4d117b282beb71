"""CLIP (Radford et al. 2021, arXiv:2103.00020): an encoder of images and one of texts, each with a projection into one space. Any
families of this project are its towers, with the heads that only their own pretraining needs left out."""

import importlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from ptmrun.batch import Pair, PairSpec, Tokens
from ptmrun.config import choices, parsing, specs
from ptmrun.errors import UserError
from ptmrun.models import base, library_format
from ptmrun.models.base import Family, Part, settings
from ptmrun.storage import tensor_files

SCALE = math.log(1 / 0.07)  # of similarities, at the beginning: its logarithm
KINDS = {"image": "images", "text": "text"}  # of data, of each tower
SHARED = ("tokenizer", "vocabulary", "lowercase", "length")  # keys of a tower for texts that are the model's own


def tower(options: Any, which: str) -> tuple[Family, Any]:
    """(family, its options) of the tower for `which`, image or text: the family's own defaults and model.image_options. Raises
    UserError for an option that the family does not have."""
    name, key = getattr(options, which), f"model.{which}_options"
    values = yaml.safe_load(choices.text("model", name))["model"]
    del values["spec"]
    if which == "text":
        values |= {shared: getattr(options, shared) for shared in SHARED}
    for setting in getattr(options, f"{which}_options") or []:
        option, value = ([*re.split("[:=]", setting, maxsplit=1), ""])[:2]
        if not value or option not in values or option in ("name", *(SHARED if which == "text" else ())):
            known = ", ".join(k for k in values if k not in ("name", *SHARED))
            raise UserError(f"{key}: {setting}: expected settings of model={name}, [size:...]; it has {known}")
        values[option] = yaml.safe_load(value)
    kind = specs.section("model", name, KINDS[which])
    try:
        typed = kind.model_validate(values)
    except ValidationError as error:
        raise UserError(*parsing.explain(error, values, f"{key}: ", kind)) from None
    module = specs.spec("model", name).module
    assert module is not None
    return importlib.import_module(module).FAMILY, typed


def parts(options: Any) -> dict[str, Part]:
    """The towers that begin with weights of their own."""
    begun: dict[str, Part] = {}
    for which in KINDS:
        if (init := getattr(options, f"{which}_init")) and init != "random":
            family, typed = tower(options, which)
            shared = SHARED if which == "text" else ()
            begun[which] = Part(init=init, model=getattr(options, which), family=family, options=typed, shared=shared)
    return begun


def of(options: Any) -> Family:
    """With what the families of its towers say of their data."""
    (image, seen), (text, _) = tower(options, "image"), tower(options, "text")
    return replace(
        FAMILY,
        fitting=lambda _, side: image.fitting(seen, side),
        framing=text.framing,
        tokenizer=text.tokenizer,
        framed=text.framed,
    )


def resolve(options: Any, spec: PairSpec) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto, notes on why), of both towers."""
    changes: dict[str, Any] = {}
    notes: list[str] = []
    for which in KINDS:
        family, typed = tower(options, which)
        own, why = family.resolve(typed, getattr(spec, which))
        changes[f"{which}_options"] = settings(typed.model_copy(update=own).model_dump(exclude={"name", *SHARED}))
        notes += [re.sub(r"\bmodel\.", f"model.{which}_options: ", line) for line in why]
    return changes, notes


def build(options: Any, spec: PairSpec, attention: str) -> "Encoder":
    """An encoder with initial weights, from resolved options."""
    (image, seen), (text, read) = tower(options, "image"), tower(options, "text")
    return Encoder(image.build(seen, spec.image, attention), text.build(read, spec.text, attention), options.projection)


class Encoder(base.Encoder):
    """`features` are those of the image tower. scale: the logarithm of what similarities are multiplied by; bias: what is added
    then, where an objective has one."""

    from_library = False
    trims = True
    aligns = True

    def __init__(self, image: base.Encoder, text: base.Encoder, projection: int):
        super().__init__()
        self.image, self.text = image, text
        for part in (image, text):
            if part.trims:
                part.trim()
        self.width, self.depth, self.attends = image.width, max(image.depth, text.depth), image.attends
        self.learns_buffers = image.learns_buffers
        self.image_projection = nn.Linear(image.width, projection, bias=False)
        self.text_projection = nn.Linear(text.width, projection, bias=False)
        for layer in (self.image_projection, self.text_projection):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.scale, self.bias = nn.Parameter(torch.tensor(SCALE)), nn.Parameter(torch.tensor(0.0))

    def features(self, pair: Pair) -> Tensor:
        """Of the images, [B, width]."""
        return self.image.features(pair.images)

    def local_features(self, pair: Pair) -> Tensor:
        return self.image.local_features(pair.images)

    def image_embeddings(self, images: Tensor) -> Tensor:
        """[B, C, S, S] -> [B, projection]"""
        return self.image_projection(self.image.features(images))

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """[B, T] -> [B, projection]"""
        return self.text_projection(self.text.features(tokens))

    def attention(self, pair: Pair) -> Tensor:
        return self.image.attention(pair.images)

    def learn_buffers(self, pair: Pair) -> dict[str, Tensor]:
        """Those of the image tower."""
        return {f"image.{name}": value for name, value in self.image.learn_buffers(pair.images).items()}

    def saved_buffers(self, folder: Path) -> dict[str, Tensor]:
        names = {f"image.{name}" for name, _ in self.image.named_buffers()}
        return {name: value for name, value in library_format.tensors_of(folder).items() if name in names}

    def depth_of(self, name: str) -> int:
        """The towers end at the same depth, and begin at 0."""
        which, _, rest = name.partition(".")
        if which not in KINDS:
            return self.depth + 1
        own = getattr(self, which)
        depth = own.depth_of(rest)
        return depth and depth + self.depth - own.depth

    def trim(self) -> None:
        """Leaves the image tower."""
        self.text = self.image_projection = self.text_projection = self.scale = self.bias = None  # type: ignore[assignment]

    def save(self, folder: Path, mean: list[float], std: list[float], tokenizer: Any) -> None:
        """Both towers and projections in model.safetensors, as image.* and text.* under the names of their own libraries."""
        sizes = {"width": self.width, "depth": self.depth}
        about = {"ptmrun": "clip", **sizes, "image_mean": mean, "image_std": std}
        library_format.save(self, folder, about, None, None, tokenizer)

    def load(self, folder: Path) -> None:
        tensors = library_format.tensors_of(folder)
        tensor_files.into(self, self.adjusted(tensors)[0], folder / "model.safetensors")


FAMILY = Family(resolve=resolve, build=build, of=of, parts=parts)
