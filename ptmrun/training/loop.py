"""The loop. It knows tensors, steps and files; it knows no model, objective, data set or stage."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ptmrun import rng
from ptmrun.errors import Interrupted
from ptmrun.training import optim, recovery
from ptmrun.training.checkpoint import State, copied, places, restore, save, tensors_of
from ptmrun.training.layout import Parts, Whole
from ptmrun.training.plan import Plan, StepSource
from ptmrun.training.processes import ALONE, Processes, Step
from ptmrun.training.schedule import lr_at


def fit(model: Any, batches: StepSource, plan: Plan) -> dict[str, float]:
    """Trains `model` in place for plan.steps steps, going on from plan.file when it is there, else from plan.start; returns the
    last averages.

    `model(batch) -> (Loss, {name: Loss})`; what the second holds is averaged and logged. It may have `after_step(done, steps)`,
    called after each optimizer step; `count(micro-batches)`, called before the first of several, for a loss that is normalised by
    more than one number of the whole batch; and `embed` with `compare`, see `backward_together`. A step whose loss or gradient is
    not finite, or whose loss has exploded, is skipped. When `max_skipped` in a row were, the fit goes back and on more gently
    (see recovery.py). Raises UserError when it may not or no longer do that, Interrupted after saving when a signal is pending.

    With several processes each calls it, with a model and batches that are the same; the weights and the state to go on from are
    those of the main one, which alone writes. With plan.shard each trains a part of the weights, and the main one's model has
    them all whenever it is looked at, and in the end.
    """
    loop, processes = plan.loop, plan.processes
    each = min(loop.accumulate, plan.batch_size)
    own = processes.share(each)
    model.train()
    layout = Parts(processes, each) if plan.shard else Whole(processes)
    shown, model = model, layout.trained(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept_on_disk = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in kept_on_disk}  # statistics that a forward pass changes
    optimizer = optim.build(optim.groups(model, loop, plan.depth_of, plan.depth), loop)
    average = [p.detach().clone() for p in parameters] if loop.ema else []
    state = begin(model, optimizer, average, plan, layout)
    start, saved, mark = state.step, time.perf_counter(), time.perf_counter()
    logged, wait, seen = start, 0.0, 0
    steps = shared(batches, start, plan)
    while (step := state.step) < plan.steps:
        begun = time.perf_counter()
        micros = next(steps)
        wait += time.perf_counter() - begun
        rate = state.lr_scale * (plan.rate(step) if plan.rate else lr_at(step, plan.steps, loop))
        kept = {name: b.clone() for name, b in buffers.items()}
        autocast = plan.autocast if state.precision == plan.precision else contextlib.nullcontext
        inside = partial(forward_context, autocast, plan.seed, plan.purpose, step * loop.accumulate + own.start)
        with layout.exchanging():
            sums = gradients(model, plan.forward or model, micros, inside, processes)
        samples, signum, due = sum(len(m["ids"]) for m in micros), None, time.perf_counter() - saved >= loop.checkpoint_every
        if processes.size > 1:
            mine = Step(sums, samples, plan.stop(), rate, due)
            sums, samples, signum, rate, due = processes.take_step(model, kept, mine, layout.sharded)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        norm = layout.number(nn.utils.clip_grad_norm_(parameters, loop.clip or math.inf))
        value = average_of(*sums["loss"])
        seen += samples

        if fine := math.isfinite(value + norm) and value <= recovery.limit(state):
            state.in_a_row = 0
            state.first = state.first or [value]
            if plan.recover and step % math.ceil(plan.steps / recovery.ANCHORS) == 0 and value <= state.first[0]:
                unchanged = {f"model.{name}": b for name, b in kept.items()}
                tensors = tensors_of(model, optimizer, average) | unchanged
                state.good, state.good_step = copied(layout.mine(tensors)), step
            with layout.exchanging():
                optimizer.step()
            if loop.ema:
                with torch.no_grad():
                    torch._foreach_lerp_(average, list[Tensor](parameters), 1 - min(loop.ema, (1 + step) / (10 + step)))
            model.after_step(step + 1, plan.steps)
            for name, (total, n) in sums.items():
                before = state.window.get(name, [0.0, 0.0])
                state.window[name] = [before[0] + total, before[1] + n]
        else:
            state.in_a_row += 1
            state.skipped += 1
            for name, buffer in buffers.items():
                buffer.copy_(kept[name])
        optimizer.zero_grad(set_to_none=True)
        state.step = done = step + 1
        if trouble := recovery.trouble(state, parameters, plan):
            whole = next(batches.iterate(step, done)) if processes.size > 1 and processes.main else micros
            recovery.go_back(trouble, state, dict(model.state_dict()), whole, plan, layout)
            state = begin(model, optimizer, average, plan, layout)
            steps = shared(batches, state.step, plan)
            continue

        if fine and (done % loop.log_every == 0 or done == plan.steps):
            elapsed = time.perf_counter() - mark
            state.last = {name: average_of(total, n) for name, (total, n) in state.window.items()}
            line = {"step": done, "epoch": round(done * plan.batch_size / plan.samples, 4), **state.last}
            line |= {"lr": rate, "grad_norm": norm, "skipped": state.skipped}
            line |= {"samples_per_s": round(seen / elapsed, 1), "data_wait": round(wait / elapsed, 4)}
            if state.recoveries:
                line |= {"recoveries": len(state.recoveries), "lr_scale": state.lr_scale}
            plan.metric(line)
            state.window = {}
            mark, logged, wait, seen = time.perf_counter(), done, 0.0, 0
            plan.show(done, {**state.last, **{k: line[k] for k in ("lr", "grad_norm", "samples_per_s", "data_wait")}})
        elif done - logged == 1 or done == start + 1:
            plan.show(done, {})
        if done in plan.probe_at:
            with averaged(parameters, average):
                layout.give(shown)
                if plan.probe:
                    plan.probe(done)
            layout.take_buffers(shown)
            mark, wait, seen = time.perf_counter(), 0.0, 0
        if processes.size == 1:
            signum, due = plan.stop(), time.perf_counter() - saved >= loop.checkpoint_every
        if done < plan.steps and (signum or due):
            save(plan.file, layout.mine(tensors_of(model, optimizer, average)), state, plan.steps, layout)
            saved = time.perf_counter()
        if signum and done < plan.steps:
            raise Interrupted(signum)
    if plan.save_last and state.step > start:
        save(plan.file, layout.mine(tensors_of(model, optimizer, average)), state, plan.steps, layout)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=False):
            parameter.copy_(mean)
    layout.give(shown)
    return state.last


def shared(batches: StepSource, start: int, plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """The micro-batches of the steps from `start` on that this process takes."""
    if plan.processes.size == 1:
        return batches.iterate(start, plan.steps)
    return batches.iterate(start, plan.steps, plan.processes.share(min(plan.loop.accumulate, plan.batch_size)))


def begin(model: nn.Module, optimizer: torch.optim.Optimizer, average: list[Tensor], plan: Plan, layout: Whole) -> State:
    """The state to go on from, with metrics and manifest as they were then; a fresh one where there is no checkpoint."""
    state, processes = State(plan.precision), plan.processes
    file = plan.file if plan.file.exists() else plan.start
    saved = layout.load(file, places(model, optimizer, average))
    if saved:
        with layout.exchanging():
            state = restore(file or plan.file, saved, plan.steps, plan.loop, model, optimizer, average)
    elif processes.size > 1 and not layout.sharded:  # parts are made of the main process's weights
        model.load_state_dict(processes.send(None, model.state_dict())[1])
        with torch.no_grad():
            for mean, parameter in zip(average, (p for p in model.parameters() if p.requires_grad), strict=False):
                mean.copy_(parameter)
    if plan.recover and not state.good:  # at the beginning and after a recovery
        state.good, state.good_step = copied(layout.mine(tensors_of(model, optimizer, average))), state.step
    plan.cut(state.step)
    plan.recovered(state.recoveries)
    return state


@contextlib.contextmanager
def forward_context(
    autocast: Callable[[], contextlib.AbstractContextManager], seed: int, purpose: str, first: int, index: int
) -> Iterator[None]:
    """What a forward pass of the index-th micro-batch of a step runs in: its own dropout, and autocast."""
    rng.seed_everything(seed, f"{purpose}/dropout", first + index)
    with autocast():
        yield


Inside = Callable[[int], contextlib.AbstractContextManager]


def gradients(
    model: Any, forward: Callable, micros: list[dict[str, Any]], inside: Inside, processes: Processes = ALONE
) -> dict[str, list[float]]:
    """Leaves the gradient of the batch's mean loss in the parameters; returns {name: [sum, items]} of what is logged. In one of
    several processes: that of the sum over its own micro-batches, whose sums these are too."""
    several = len(micros) > 1 or processes.size > 1
    if processes.size > 1:
        model.add_up = processes.total
    if several:
        model.count(micros)
    if several and model.compares:
        return backward_together(model, micros, inside, processes)
    return backward(model, forward, micros, inside, processes)


def backward(
    model: Any, forward: Callable, micros: list[dict[str, Any]], inside: Inside, processes: Processes
) -> dict[str, list[float]]:
    """`gradients` of a loss that is a sum over samples."""
    sums: dict[str, list[float]] = {}
    count: Tensor | int = 0
    single = len(micros) == 1 and processes.size == 1
    for i, micro in enumerate(micros):
        with inside(i):
            loss, shown = forward(micro)
        # a single micro-batch is divided before backward; several are summed first and divided once all counts are known
        (loss.total / loss.n if single else loss.total).backward()
        count = count + loss.n
        for name, (total, n) in {"loss": loss, **shown}.items():
            before = sums.get(name, [0.0, 0.0])
            sums[name] = [before[0] + float(total.detach()), before[1] + float(n)]
    if len(micros) > 1 and processes.size == 1:
        torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], float(count))
    return sums


def backward_together(model: Any, micros: list[dict[str, Any]], inside: Inside, processes: Processes) -> dict[str, list[float]]:
    """`gradients` of a loss that compares all samples of a batch, `compare(embed(batch))`: the micro-batches are embedded without
    gradients, the whole batch is compared, in every process, and each micro-batch is embedded again to pass its part of the
    gradient on (GradCache: Gao et al. 2021, arXiv:2101.06983)."""

    def embed(i: int) -> Tensor:
        with inside(i):
            return model.embed(micros[i])

    buffers = list(model.buffers())
    before = [b.clone() for b in buffers]

    def restore_buffers() -> None:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

    with torch.no_grad():
        parts = [embed(i) for i in range(len(micros))]
    restore_buffers()  # statistics count once
    sizes = [len(part) for part in parts]
    if processes.size == 1:
        own, whole, every = slice(None), torch.cat(parts), micros
    else:
        own, whole, every = processes.compared(parts, micros, next(model.parameters()).device)
    whole.requires_grad_()
    loss, shown = model.compare(whole, every)
    if processes.size == 1:
        (loss.total / loss.n).backward()
    elif processes.main:
        loss.total.backward()
    else:  # what `compare` has of parameters and buffers counts once
        whole.grad = torch.autograd.grad(loss.total, whole)[0]
        restore_buffers()
    assert whole.grad is not None
    for i, gradient in enumerate(whole.grad[own].split(sizes)):
        embed(i).backward(gradient)
    if not processes.main:
        return {}
    return {name: [float(total.detach()), float(n)] for name, (total, n) in {"loss": loss, **shown}.items()}


def average_of(total: float, n: float) -> float:
    return total / n if n else 0.0


@contextlib.contextmanager
def averaged(parameters: list[nn.Parameter], average: list[Tensor]) -> Iterator[None]:
    """The averaged weights in place of the trained ones, where an average is kept."""
    now = [p.detach().clone() for p in parameters] if average else []
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=False):
            parameter.copy_(mean)
        yield
        for parameter, value in zip(parameters, now, strict=False):
            parameter.copy_(value)
