"""What AlexNet and VGG share: a stack of convolutions, and two large linear layers below the last one."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun.models import map_encoder

PUBLISHED, NARROW, LARGE = 4096, 512, 128  # units of the linear layers: as published, and for images smaller than LARGE
PUBLISHED_DROPOUT = 0.5  # of so many units; of a few it leaves too little


def resolve(options: Any, size: int, least: int) -> tuple[dict[str, Any], list[str]]:
    """`least`: the smallest side that every pooling can halve."""
    changes, notes = map_encoder.resized(options, size, least, "the least that its poolings can halve")
    hidden = options.hidden
    if hidden == "auto":
        hidden = PUBLISHED if size >= LARGE else NARROW
        if hidden == NARROW:
            notes.append(
                f"model.hidden={NARROW}: units of the linear layers, for small images (published: {PUBLISHED}, with dropout)"
            )
    dropout = options.dropout
    if dropout == "auto":
        dropout = PUBLISHED_DROPOUT if hidden == PUBLISHED else 0.0
    return {**changes, "hidden": hidden, "dropout": dropout}, notes


class Encoder(map_encoder.Encoder):
    """Features are what torchvision's last linear layer gets. With `hidden` as published the weights load there unchanged; with
    fewer units the linear layers also see no more positions than the map has."""

    last = "classifier.6"

    def __init__(self, net: Any, linear: tuple[int, int], hidden: int, blocks: list, channels: int, side: int, resize: int):
        """`net` is on the meta device: large layers are never made. `linear`: the places of two of them."""
        maps = net.features(torch.zeros(1, 3, resize, resize, device="meta"))
        if hidden != PUBLISHED:
            grid = min(net.avgpool.output_size[0], maps.shape[-1])
            net.avgpool.output_size = (grid, grid)
            net.classifier[linear[0]] = nn.Linear(maps.shape[1] * grid**2, hidden)
            net.classifier[linear[1]] = nn.Linear(hidden, hidden)
            self.adapted = (f"{hidden} hidden units, as published: {PUBLISHED}", f"{grid}x{grid} positions below them")
        self.linear, self.hidden = linear, hidden
        net.classifier = net.classifier[:-1]  # the last linear layer is the classifier's
        net.to_empty(device="cpu")
        self.initialise(net)
        super().__init__(net, hidden, [*blocks, *(f"classifier.{i}" for i in linear)], channels, side, resize)

    def empty(self, classes: int) -> nn.Module:
        net: Any = super().empty(classes)
        if self.hidden != PUBLISHED:
            net.avgpool.output_size = self.net.avgpool.output_size
            for place in self.linear:
                net.classifier[place] = nn.Linear(self.net.classifier[place].in_features, self.hidden)
            net.classifier[6] = nn.Linear(self.hidden, classes)
        return net

    def lines(self, classes: int) -> list[str]:
        if self.hidden == PUBLISHED:
            return super().lines(classes)
        layers = [(i, self.net.classifier[i].in_features, self.hidden) for i in self.linear] + [(6, self.hidden, classes)]
        places = ", ".join(f"net.classifier[{i}]" for i, _, _ in layers)
        values = ", ".join(f"torch.nn.Linear({a}, {b})" for _, a, b in layers)
        size = self.net.avgpool.output_size
        return [*super().lines(classes), f"net.avgpool.output_size, {places} = {size}, {values}"]

    @staticmethod
    def initialise(net: nn.Module) -> None:
        """He et al. 2015, arXiv:1502.01852. With torchvision's own, in AlexNet and VGG's linear layers, what tells images apart
        shrinks from layer to layer."""
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def maps(self, images: Tensor) -> Tensor:
        return self.net.features(images)

    def pooled(self, maps: Tensor) -> Tensor:
        return self.net.classifier(self.net.avgpool(maps).flatten(1))

    @property
    def above_map(self) -> list[nn.Module]:
        return [self.net.classifier]

    @property
    def cam_layers(self) -> list[nn.Module]:
        """What each pooling is given."""
        return [layer for layer, after in itertools.pairwise(self.net.features) if isinstance(after, nn.MaxPool2d)]
