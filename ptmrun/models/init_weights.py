"""Initial weights."""

from torch import nn


def xavier(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases for every linear layer below, as MAE does (He et al. 2022, appendix A.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def near_zero(layer: nn.Linear) -> None:
    """A prediction head that first answers about zero instead of something wrong: deviation 0.02, as in transformers."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
