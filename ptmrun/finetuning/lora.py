"""Low-rank and scaling methods of fine-tuning, by the peft library: LoRA, DoRA, AdaLoRA, IA3.

They change an encoder in place; its weights keep their values, and its first answers stay the same.
"""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.adalora import RankAllocator
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ptmrun.errors import UserError
from ptmrun.loss import Loss
from ptmrun.storage import tensor_files

ADAPTER = "default"  # peft's name of what is added
START, END = 0.1, 0.3  # shares of the steps before AdaLoRA's budget falls, and after
FITTING = (nn.Linear, Conv1D, nn.Conv2d)  # exactly these: a subclass may use its weights in another way
EVERY = 10  # steps from one of its allocations to the next


def lora(encoder: Any, names: list[str], options: Any, steps: int) -> None:
    """W + alpha/rank B A (LoRA: Hu et al. 2021, arXiv:2106.09685); for dora also a magnitude for each of W's outputs (DoRA:
    Liu et al. 2024, arXiv:2402.09353)."""
    add(encoder.net, names, LoraConfig(**shared(names, options), r=options.rank, use_dora=options.name == "dora"))


def adalora(encoder: Any, names: list[str], options: Any, steps: int) -> "Allocation":
    """W + alpha/rank P diag(l) Q, where the allocation sets the least important l to zero (AdaLoRA: Zhang et al. 2023,
    arXiv:2303.10512). Raises UserError for ranks that do not fall, and too few steps."""
    first, last = round(START * steps), round(END * steps)
    if options.rank >= options.first_rank:
        raise UserError(
            f"finetune.rank={options.rank}: the mean rank at the end must be below finetune.first_rank={options.first_rank}"
        )
    if first + last + EVERY > steps:
        raise UserError(
            f"finetune=adalora: {steps} steps are too few to choose ranks; at least {round(EVERY / (1 - START - END)) + 1}"
        )
    settings = AdaLoraConfig(
        **shared(names, options),
        init_r=options.first_rank,
        target_r=options.rank,
        tinit=first,
        tfinal=last,
        deltaT=EVERY,
        total_step=steps,
        orth_reg_weight=options.orthogonal,
    )
    add(encoder.net, names, settings)
    return Allocation(encoder.net, settings)


dora = lora


def ia3(encoder: Any, names: list[str], options: Any, steps: int) -> None:
    """A factor for every output of the modules `names`, and for every input of those that end a feed-forward layer: keys, values
    and hidden units (IA3: Liu et al. 2022, arXiv:2205.05638)."""
    ends = [name for name in names if re.fullmatch(encoder.places["feed_forward"], name)]
    add(encoder.net, names, IA3Config(target_modules=names, feedforward_modules=ends))


def shared(names: list[str], options: Any) -> dict[str, Any]:
    return {"target_modules": names, "lora_alpha": options.alpha, "lora_dropout": options.dropout}


def add(net: nn.Module, names: list[str], settings: Any) -> None:
    """Puts what `settings` say on the modules `names`, and freezes all weights that were there before."""
    settings.fan_in_fan_out = isinstance(net.get_submodule(names[0]), Conv1D)
    inject_adapter_in_model(settings, net, ADAPTER)


class Allocation(nn.Module):
    """AdaLoRA's budget, driven by the loop: peft's rank allocator, with what it knows of importance as buffers, so that an
    interrupted fit goes on exactly."""

    def __init__(self, net: nn.Module, settings: Any):
        super().__init__()
        self.allocator, self.weight = RankAllocator(net, settings, ADAPTER), settings.orth_reg_weight
        self.end = settings.total_step - settings.tfinal  # the step from which ranks stay
        self.names = [name for name, _ in net.named_parameters() if "lora_" in name]
        for i, name in enumerate(self.names):
            weight = net.get_parameter(name)
            self.register_buffer(f"sensitivity{i}", torch.zeros_like(weight))
            self.register_buffer(f"uncertainty{i}", torch.zeros_like(weight))
            if ".lora_E." in name:
                self.register_buffer(f"kept{i}", torch.ones(len(weight), dtype=torch.bool))

    def after_step(self, net: nn.Module, done: int) -> None:
        """After optimizer step `done` (from 1), while its gradients are there: importance, the budget of that step, and zeros
        where a rank is not kept."""
        end, allocator = self.end, self.allocator
        if done < end:
            self.weigh(net)
        budget, due = allocator.budget_schedule(done)
        if (done < end and due) or done == end or (done > end and self.rank > budget):
            for name, kept in allocator.mask_to_budget(net, budget).items():
                self.get_buffer(f"kept{self.names.index(name)}").copy_(torch.tensor(kept))
        elif done > end:
            allocator.mask_using_rank_pattern(net, {name: kept.tolist() for name, kept in self.kept()})

    def weigh(self, net: nn.Module) -> None:
        """Sensitivity and uncertainty of every weight, as moving averages."""
        averages = {"sensitivity": self.allocator.exp_avg_ipt, "uncertainty": self.allocator.exp_avg_unc}
        for i, name in enumerate(self.names):
            self.allocator.ipt.setdefault(name, torch.tensor(0.0))  # the allocator begins with what it does not know
            for kind, values in averages.items():
                values[name] = self.get_buffer(f"{kind}{i}")
        self.allocator.update_ipt(net)
        for i, name in enumerate(self.names):
            for kind, values in averages.items():
                self.get_buffer(f"{kind}{i}").copy_(values[name])

    def kept(self) -> list[tuple[str, Tensor]]:
        """(name of the singular values, which are kept [first_rank] bool) of every module."""
        return [(name, self.get_buffer(f"kept{i}")) for i, name in enumerate(self.names) if ".lora_E." in name]

    @property
    def rank(self) -> int:
        """Of all modules together."""
        return sum(int(kept.sum()) for _, kept in self.kept())

    def regularised(self, classifier: Any, inputs: Any, output: tuple[Loss, dict[str, Loss]]) -> tuple[Loss, dict[str, Loss]]:
        """What a classifier's forward returns: added to the loss, how far P and Q are from orthogonal, the mean of |P'P - I| and
        |QQ' - I| (Frobenius norms, as in peft) times its weight; beside it, the rank."""
        loss, shown = output
        factors = {name: p for name, p in classifier.encoder.net.named_parameters() if ".lora_A." in name or ".lora_B." in name}
        bases = [p if ".lora_A." in name else p.T for name, p in factors.items()]
        apart = torch.stack([torch.linalg.matrix_norm(q @ q.T - torch.eye(len(q), device=q.device)) for q in bases]).mean()
        return Loss(loss.total + loss.n * self.weight * apart, loss.n), {
            **shown,
            "rank": Loss(torch.tensor(self.rank), 1),
        }


def ranks(tensors: dict[str, Tensor]) -> dict[str, int]:
    """What AdaLoRA left of each module's rank, from the weights that it trained."""
    return {name.split(".lora_E.")[0]: int((value != 0).sum()) for name, value in tensors.items() if ".lora_E." in name}


def merge(net: nn.Module) -> None:
    """Adds what was trained to the weights, in place: the network is the library's again."""
    for name, module in list(net.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            net.set_submodule(name, module.get_base_layer())


def save(net: Any, folder: Path) -> None:
    """What was added, as peft's PeftModel.from_pretrained(net as it was, folder) reads it."""
    tensors = get_peft_model_state_dict(net, adapter_name=ADAPTER)
    tensor_files.save(
        folder / "adapter_model.safetensors", {f"base_model.model.{name}": value for name, value in tensors.items()}
    )
    net.peft_config[ADAPTER].save_pretrained(folder)


def load(net: Any, folder: Path) -> None:
    """Puts on a network what `save` wrote, by peft's own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that it will give up
        PeftModel.from_pretrained(net, folder)
