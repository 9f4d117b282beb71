"""Parameter groups, optimizers and the learning rate as a pure function of the step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ptmrun.config.schema import Loop

PLAIN = (  # in the names of parameters that are not decayed, though they have two dimensions or more
    *("position_embeddings", "pos_embed", "embed_positions", ".wpe."),
    *("_bias", "_token", "seg_embed", "mask_emb", "layer_scale"),
)

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # in an optimizer's state, of the shape of their parameter


def groups(model: nn.Module, loop: Loop, depth_of: Callable[[str], int], top: int) -> list[dict]:
    """Parameter groups with `lr_scale` (layer_decay ** distance from the top) and weight decay on matrices only.

    `depth_of(name)` says how deep a parameter sits: 0 for embeddings ... `top` for the head. Biases, norms, position
    embeddings and class or mask tokens are not decayed (the practice of BEiT and MAE).
    """
    assert loop.layer_decay != "auto", "settled by the number of labels"
    by_scale: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(word in name for word in PLAIN)
            decay = 0.0 if plain else loop.weight_decay
            by_scale.setdefault((loop.layer_decay ** (top - depth_of(name)), decay), []).append(parameter)
    return [{"params": p, "lr_scale": scale, "weight_decay": decay} for (scale, decay), p in by_scale.items()]


def build(param_groups: list[dict], loop: Loop) -> torch.optim.Optimizer:
    """The optimizer by name; `fused` kernels (one pass over the weights) where the device has them."""
    if loop.optimizer == "sgd":
        return torch.optim.SGD(param_groups, lr=loop.lr, momentum=loop.beta1)
    if loop.optimizer == "lars":
        return Lars(param_groups, lr=loop.lr, momentum=loop.beta1)
    fused = all(p.device.type in ("cpu", "cuda", "mps") for g in param_groups for p in g["params"])
    return torch.optim.AdamW(param_groups, lr=loop.lr, betas=(loop.beta1, loop.beta2), fused=fused)


def memory(parameters: int, loop: Loop) -> int:
    """Bytes of an optimizer's moments, in float32."""
    return 4 * parameters * (2 if loop.optimizer == "adamw" else 1)


class Lars(torch.optim.Optimizer):
    """LARS (You et al. 2017, arXiv:1708.03888) as SimCLR uses it: momentum of learning rate times decayed gradient, the latter
    scaled to `trust` times the weights' norm for matrices; biases and norms, which have no weight decay, take plain steps."""

    def __init__(self, param_groups: list[dict], lr: float, momentum: float, trust: float = 1e-3):
        super().__init__(param_groups, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad.add(parameter, alpha=group["weight_decay"])
                if parameter.ndim > 1:
                    weight, change = parameter.norm(), update.norm()
                    scale = torch.where((weight > 0) & (change > 0), group["trust"] * weight / change, 1.0)
                    update.mul_(scale)
                state = self.state[parameter]
                moment = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                parameter.sub_(moment.mul_(group["momentum"]).add_(update, alpha=group["lr"]))


def load(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], loop: Loop) -> None:
    """Sets the state from {"<number of the parameter>.<kind>": tensor}. Raises ValueError when it does not fit."""
    kinds = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}, "lars": {"momentum_buffer"}}[loop.optimizer]
    entries: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, kind = name.partition(".")
        entries.setdefault(number, {})[kind] = value
    state = {}
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if entry := entries.pop(str(i), {}):
            step = entry.get("step", torch.ones(()))
            shapes = {value.shape for kind, value in entry.items() if kind != "step"}
            if set(entry) != kinds or shapes != {parameter.shape} or step.shape != () or step < 1:
                raise ValueError(f"state of parameter {i}")
            # fused kernels go through memory: moments must lie there as their parameter does (channels last, for instance)
            state[i] = {k: v if k == "step" else torch.empty_like(parameter).copy_(v) for k, v in entry.items()}
    if entries:
        raise ValueError("state of no parameter")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
