"""Run the step at which training stopped once more and say where its first value that is not finite comes from."""

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptmrun.batch import Samples
from ptmrun.commands.table import Call
from ptmrun.errors import UserError
from ptmrun.loss import Learner
from ptmrun.runs.folder import Run
from ptmrun.stages.networks import Networks
from ptmrun.stages.predictor import networks_of
from ptmrun.stages.trials import build_model, finetune_settings, label_counts, trials
from ptmrun.storage import tensor_files
from ptmrun.training import device, recovery
from ptmrun.training.loop import average_of, forward_context, gradients


class Culprit(NamedTuple):
    """The first module whose output is not finite."""

    name: str
    kind: str
    share: float  # of the values of its output that are not finite
    largest: float  # finite magnitude in its input
    sound: bool  # whether its input was finite


def replay(run: Run) -> bool:
    """Says what it finds; True when the step is not finite here either. Raises UserError when the run has saved no batch."""
    files = sorted(run.path("checkpoints", "nan").glob("*.safetensors"), key=lambda p: p.stat().st_mtime)
    if not files:
        raise UserError(
            f"{run.folder}: holds no batch to replay; one is saved when training stops because it diverges: "
            f"with on_nan=stop, or after {recovery.MOST} recoveries"
        )
    file = run.path("checkpoints", "nan", files[-1].name)
    with run.lock():
        context = networks_of(run)
        weights, micros, step = recovery.load_batch(file, context.processor.samples)
        model = model_of(context, step)
        tensor_files.into(model, weights, file, sound=False)
        micros = [{name: moved(value, context.device) for name, value in micro.items()} for micro in micros]
        run.say(f"Replaying step {step['step'] + 1} of {step['purpose']} in {step['precision']}, with the batch in {file}")
        run.say(f"  weights: {health(dict(model.named_parameters()))}")
        run.say(f"  batch: {health({f'{k}[{i}]': v for i, micro in enumerate(micros) for k, v in micro.items()})}")
        bad = inspect_step(model, micros, step, step["precision"], context, run.say)
        if step["precision"] != "fp32":
            run.say("The same in fp32")
            inspect_step(model, micros, step, "fp32", context, run.say)
    return bad


def model_of(networks: Networks, step: dict[str, Any]) -> Learner:
    """The module that a fit trains, as it is built; its weights do not matter here."""
    cfg, purpose = networks.cfg, step["purpose"]
    if purpose == "pretrain":
        return networks.objective().train()
    for kind in ("tuned", "scratch"):
        for labels in label_counts(cfg):
            for trial in trials(cfg, kind, labels):
                if re.fullmatch(rf"\w+/{trial.name}(-\d+)?", purpose):  # from scratch with the steps of a point
                    return build_model(networks, trial, finetune_settings(cfg, trial, 1), step["steps"], None)[0]
    raise UserError(f"{purpose}: not a training of this run; was its config changed?")


def moved(value: Any, where: torch.device) -> Any:
    """Tensors, and samples of several, on a device; what else a batch holds as it is."""
    if isinstance(value, Tensor):
        return value.to(where)
    return value.map(lambda x: x.to(where)) if isinstance(value, Samples) else value


def inspect_step(
    model: nn.Module,
    micros: list[dict[str, Any]],
    step: dict[str, Any],
    precision: str,
    context: Networks,
    say: Callable[[str], None],
) -> bool:
    """Runs the step forward and backward and says what is not finite; True when something is."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    with watched(model) as culprits:
        autocast = partial(device.autocast, context.device, precision)
        sums = gradients(model, model, micros, partial(forward_context, autocast, step["seed"], step["purpose"], step["first"]))
    value = average_of(*sums["loss"])
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    norm = float(torch.nn.utils.get_total_norm(grads.values()))
    finite = math.isfinite(value + norm)
    fine = finite and value <= step["limit"]
    say(f"  in {precision} the step is {'finite' if finite else 'not finite'}: loss {value:.4g}, gradient norm {norm:.4g}")
    if finite and not fine:
        say(f"  but the loss has exploded: it is above {step['limit']:.4g}, {recovery.EXPLODED} times the first")
    for culprit in culprits:
        say(
            f"  the first output that is not finite: {culprit.name} ({culprit.kind}), {culprit.share:.1%} of its values; "
            f"the largest finite magnitude of its input is {culprit.largest:.3g}"
        )
        if not culprit.sound:
            say("    its input is not finite already, and comes from no module: from the batch or from what is between modules")
    if not finite and not culprits:
        say("  the outputs of all modules are finite: it begins in the backward pass")
    if not finite:
        say(f"  gradients, from the loss back: {health(dict(reversed(grads.items())))}")
    return not fine


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[list[Culprit]]:
    """Gives a list that gets the first module whose output is not finite, in the order of the forward pass."""
    culprits: list[Culprit] = []

    def look_at(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            made, given = values(output), values([args, kwargs])
            if not culprits and not made.isfinite().all():
                finite = given[given.isfinite()]
                largest = float(finite.abs().max()) if len(finite) else math.nan
                share = 1 - float(made.isfinite().double().mean())
                culprits.append(Culprit(name or "the whole", type(module).__name__, share, largest, len(finite) == len(given)))

        return hook

    handles = [m.register_forward_hook(look_at(name), with_kwargs=True) for name, m in model.named_modules()]
    try:
        yield culprits
    finally:
        for handle in handles:
            handle.remove()


def values(output: Any) -> Tensor:
    """All floating-point values in nested tuples, lists and dicts, as one row."""
    if isinstance(output, Tensor):
        return output.detach().flatten().double() if output.is_floating_point() else torch.zeros(0)
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return torch.cat([torch.zeros(0), *map(values, parts)])


def health(named: dict[str, Any]) -> str:
    """`finite, the largest 3.1 in head.weight`, or which are not."""
    tensors = {k: v.detach() for k, v in named.items() if isinstance(v, Tensor) and v.is_floating_point()}
    bad = [k for k, v in tensors.items() if not v.isfinite().all()]
    if bad:
        return f"{len(bad)} of {len(tensors)} tensors are not finite: {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}"
    if not tensors:
        return "nothing but whole numbers"
    largest = max(tensors, key=lambda k: float(tensors[k].abs().max()))
    return f"finite, the largest is {float(tensors[largest].abs().max()):.3g} in {largest}"


def command(call: Call) -> int:
    return 0 if replay(call.runs[0]) else 1
