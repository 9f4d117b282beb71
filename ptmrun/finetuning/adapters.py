"""Bottleneck adapters: small layers behind the layers of a frozen encoder (Houlsby et al. 2019, arXiv:1902.00751)."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.models.bit.modeling_bit import WeightStandardizedConv2d
from transformers.pytorch_utils import Conv1D

from ptmrun.storage import tensor_files

FILE = "adapters.safetensors"
NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)
FITTING = (nn.Linear, Conv1D, nn.Conv2d, WeightStandardizedConv2d)


class Bottleneck(nn.Module):
    """x -> x + up(relu(down(x))), over the last dimension of tokens or the channels of maps. `up` begins with zeros, so that at
    first nothing changes; 2 * width * bottleneck + width + bottleneck parameters."""

    def __init__(self, width: int, bottleneck: int, maps: bool):
        super().__init__()
        layer: Any = nn.Conv2d if maps else nn.Linear
        size = (1,) if maps else ()
        self.down, self.up = layer(width, bottleneck, *size), layer(bottleneck, width, *size)
        nn.init.normal_(self.down.weight, std=width**-0.5)
        for parameter in (self.down.bias, *self.up.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))


def adapter(encoder: Any, names: list[str], options: Any, steps: int) -> None:
    """One behind each of the modules `names`, whose own weights keep their names. With `norms` scales and shifts of the
    normalisation layers are trained too (section 2.1 of the paper)."""
    for name in names:
        put(encoder.net.get_submodule(name), options.width)
    for module in encoder.net.modules() if options.norms else ():
        if isinstance(module, NORMS):
            module.requires_grad_(True)


def put(module: Any, bottleneck: int) -> None:
    width = next(getattr(module, k) for k in ("out_features", "nf", "out_channels") if hasattr(module, k))
    module.adapter = Bottleneck(width, bottleneck, maps=isinstance(module, nn.Conv2d)).to(module.weight.device)
    module.register_forward_hook(behind)


def behind(module: Any, inputs: Any, output: Tensor) -> Tensor:
    return module.adapter(output)


def save(net: nn.Module, folder: Path) -> None:
    """The adapters' weights by name."""
    tensor_files.save(folder / FILE, {name: value for name, value in net.state_dict().items() if ".adapter." in name})


def load(net: nn.Module, folder: Path) -> None:
    """Puts on a network what `save` wrote."""
    tensors = tensor_files.load(folder / FILE)[0]
    for name, value in tensors.items():
        if name.endswith(".adapter.down.weight"):
            put(net.get_submodule(name.removesuffix(".adapter.down.weight")), len(value))
    net.load_state_dict(tensors, strict=False)
