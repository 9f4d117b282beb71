"""What the convolutional and hierarchical families share: a library's network, kept as it is, seen as an encoder with maps."""

import abc
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from ptmrun.models import base, library_format
from ptmrun.models.modes import eval_mode


class Encoder(base.Encoder):
    """`net` is the library's network without its last layer, its parameter names kept; a family says how it gives maps.

    Gray images become three equal channels, so that weights fit both ways. Images smaller than the network was made for are
    scaled up to `resize` inside (bilinear), which leaves the network itself as published.
    """

    net: Any
    resize: int
    layout = torch.contiguous_format  # channels_last where it measures faster
    kind = ""  # torchvision's name of the network; family and size for transformers' ones
    whole: Any = None  # transformers' class with a linear layer on top
    last: str | None = None  # torchvision's name of its last linear layer,
    auxiliary_last = "AuxLogits.fc"  # and of the auxiliary one's
    names: Mapping[str, str] = {}  # other names of its parameters (patterns) -> the library's
    adapted: tuple[str, ...] = ()  # how the network differs from the published one
    why_no_classifier = "the network is ptmrun's own"  # why there is neither

    def __init__(
        self, net: nn.Module, width: int, blocks: Sequence[str | tuple[str, ...]], channels: int, side: int, resize: int
    ):
        """`blocks`: prefixes of parameter names, from the stem on; what none of them names lies above the last one."""
        super().__init__()
        self.net = net.to(memory_format=self.layout)
        self.width, self.channels, self.side, self.resize = width, channels, side, resize
        self.depth = len(blocks) - 1
        self.blocks = [tuple(f"{x}." for x in (block if isinstance(block, tuple) else (block,))) for block in blocks]

    @functools.cached_property
    def map_shape(self) -> tuple[int, int]:
        """(D, h) of a map."""
        where = next(self.parameters()).device
        with eval_mode(self.net), torch.no_grad():
            _, width, side, _ = self.feature_map(torch.zeros(1, self.channels, self.side, self.side, device=where)).shape
        return width, side

    @abc.abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """[B, 3, R, R] -> [B, D, h, w]"""

    def pooled(self, maps: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, width]"""
        return maps.mean((2, 3))

    @property
    def above_map(self) -> list[nn.Module]:
        """Modules with weights between map and features."""
        return []

    def prepare(self, images: Tensor) -> Tensor:
        if self.channels == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[-1] != self.resize:
            images = F.interpolate(images, (self.resize, self.resize), mode="bilinear", align_corners=False)
        return images.contiguous(memory_format=self.layout)

    def feature_map(self, images: Tensor) -> Tensor:
        return self.maps(self.prepare(images))

    def features(self, images: Tensor) -> Tensor:
        return self.pooled(self.feature_map(images))

    def local_features(self, images: Tensor) -> Tensor:
        """Of each place of the map: [B, C, S, S] -> [B, h * w, D]."""
        return self.feature_map(images).flatten(2).transpose(1, 2)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Of each side that a stage ends with, the last map."""
        seen: list[Any] = []
        hooks = [layer.register_forward_hook(lambda module, given, made: seen.append(made)) for layer in self.cam_layers]
        try:
            last = self.feature_map(images)
        finally:
            for hook in hooks:
                hook.remove()
        by_side = {made.shape[-1]: made for made in (*seen, last)}
        return [by_side[side] for side in sorted(by_side, reverse=True)]

    def depth_of(self, name: str) -> int:
        """How deep a parameter of this module sits."""
        own = name[name.index("net.") + 4 :]
        return next((i for i, prefixes in enumerate(self.blocks) if own.startswith(prefixes)), self.depth + 1)

    def preprocessing(self, mean: list[float], std: list[float]) -> dict[str, Any]:
        """What becomes of an image before it is the network's input."""
        mean, std = ([x[0]] * 3 if self.channels == 1 else x for x in (mean, std))
        return library_format.processor(self.resize, mean, std)

    def classifier(
        self, head: nn.Linear, auxiliary: nn.Linear | None, classes: list[str], task: str
    ) -> tuple[nn.Module, dict] | None:
        """(the library's own classifier of these weights, a description for config.json where it is torchvision's); None where
        there is none."""
        if task != "classes":
            return None
        if self.whole is not None:
            return library_format.with_head(self.net, self.whole, head, classes, self.resize), {}
        if self.last is None:
            return None
        net = self.empty(len(classes))
        heads = {self.last: head, self.auxiliary_last: auxiliary}
        states = {f"{name}.{k}": v for name, x in heads.items() if x for k, v in x.state_dict().items()}
        net.load_state_dict({**self.net.state_dict(), **states})
        lines = [
            "import safetensors.torch, torch, torchvision",
            *self.lines(len(classes)),
            'net.load_state_dict(safetensors.torch.load_file("model.safetensors"))',
        ]
        size = [3, self.resize, self.resize]
        about = {"library": "torchvision", "model": self.kind, "num_classes": len(classes), "classes": classes, "input": size}
        return net, {**about, "adapted": self.adapted, "load": lines}

    def empty(self, classes: int) -> nn.Module:
        """torchvision's classifier, without these weights."""
        return models.get_model(self.kind, weights=None, num_classes=classes)

    def lines(self, classes: int) -> list[str]:
        """Python that gives the same as `empty`."""
        return [f"net = torchvision.models.{self.kind}(num_classes={classes})"]

    def save(self, folder: Path, mean: list[float], std: list[float]) -> None:
        """A folder that the library reads; see `library_format.save`."""
        about = {
            "library": "torchvision",
            "model": self.kind,
            "without": "its last layer",
            "input": [3, self.resize, self.resize],
        }
        library_format.save(self.net, folder, about, self.preprocessing(mean, std))

    def load(self, folder: Path) -> None:
        library_format.load(self.net, folder, library_format.tensors_of(folder))

    def adjusted(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights of an encoder of other images, as this one takes them: nothing to do, as images are what is changed here."""
        return tensors, []


def resized(options: Any, size: int, least: int, why: str) -> tuple[dict[str, Any], list[str]]:
    """({"resize": side}, notes): with `model.resize=auto`, images smaller than `least` are scaled up to it."""
    if options.resize == "none":
        return {"resize": size}, []
    if options.resize != "auto":
        return {"resize": options.resize}, []
    if size >= least:
        return {"resize": size}, []
    return {"resize": least}, [
        f"model.resize={least}: images of {size}x{size} are scaled up, {why} (model.resize=none: as they are)"
    ]
