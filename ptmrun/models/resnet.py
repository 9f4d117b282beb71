"""ResNet (He et al. 2016, arXiv:1512.03385): torchvision's, 18, 34 or 50 layers; 10 (a block a stage) for very small images."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from ptmrun.batch import ImageSpec
from ptmrun.models import map_encoder
from ptmrun.models.base import Family

LEAST = 56  # the side that leaves 2x2 positions
SIZES = {
    10: (resnet.BasicBlock, [1, 1, 1, 1]),
    18: (resnet.BasicBlock, [2, 2, 2, 2]),
    34: (resnet.BasicBlock, [3, 4, 6, 3]),
    50: (resnet.Bottleneck, [3, 4, 6, 3]),
}
PUBLISHED = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V2",
}
AS_PUBLISHED = {"size": 18}


def resolve(options: Any, spec: ImageSpec) -> tuple[dict[str, Any], list[str]]:
    size = spec.size
    changes, notes = map_encoder.resized(options, size, LEAST, "so that its stem and stages leave 2x2 positions, not one")
    layers = options.size
    if layers == "auto":
        layers = 10 if size <= 40 else 18
        notes.insert(0, f"model.size={layers}: layers, for images of {size}x{size}")
    return {**changes, "size": layers}, notes


def build(options: Any, spec: ImageSpec, attention: str) -> "Encoder":
    size, channels = spec
    return Encoder(options, channels, size)


class Encoder(map_encoder.Encoder):
    layout = torch.channels_last
    last = "fc"

    def __init__(self, options: Any, channels: int, size: int):
        self.kind, self.layers = f"resnet{options.size}", options.size
        self.adapted = ("one block a stage",) if options.size == 10 else ()
        block, layers = SIZES[options.size]
        last = "conv2" if block is resnet.BasicBlock else "conv3"
        self.places = {"feed_forward": rf"layer\d\.\d+\.{last}"}  # where fine-tuning methods put what they add
        net = resnet.ResNet(block, layers)
        width, net.fc = net.fc.in_features, nn.Identity()
        blocks = [f"layer{stage + 1}.{i}" for stage, n in enumerate(layers) for i in range(n)]
        super().__init__(net, width, [("conv1", "bn1"), *blocks], channels, size, options.resize)

    def empty(self, classes: int) -> nn.Module:
        block, layers = SIZES[self.layers]
        return resnet.ResNet(block, layers, num_classes=classes)

    def lines(self, classes: int) -> list[str]:
        block, layers = SIZES[self.layers]
        return [
            f"net = torchvision.models.resnet.ResNet(torchvision.models.resnet.{block.__name__}, {layers}, num_classes={classes})"
        ]

    def maps(self, images: Tensor) -> Tensor:
        net = self.net
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        return net.layer4(net.layer3(net.layer2(net.layer1(x))))

    @property
    def cam_layers(self) -> list[nn.Module]:
        return [self.net.layer1, self.net.layer2, self.net.layer3, self.net.layer4]


FAMILY = Family(resolve=resolve, build=build, published=PUBLISHED, as_published=AS_PUBLISHED)
