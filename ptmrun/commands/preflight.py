"""`ptmrun check`: does what a config names work and learn, and what will its run take? In a temporary folder; nothing is trained.

An objective or classifier may say what to expect: `initial_loss(batch)`, the loss of a uniform prediction (the mean, equal
probabilities); `initial_within`, how many times as much its random heads may give; `lowest_loss(batch)`, where it is not 0.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ptmrun import rng
from ptmrun.commands import estimate
from ptmrun.commands.scaling import BANDWIDTH, Step
from ptmrun.config import parsing, schema
from ptmrun.downstream.class_counts import counts
from ptmrun.finetuning import methods
from ptmrun.runs.console import console
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER
from ptmrun.stages import compute, scratch
from ptmrun.stages.context import Context, batches_of, chosen_stages, depth_of, labelled, planned
from ptmrun.stages.part_weights import by_folder
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import best_trial, chosen_labels, finetune_settings, new_model
from ptmrun.storage import tensor_files
from ptmrun.storage.files import cache_folder
from ptmrun.training import loop as training
from ptmrun.training import optim
from ptmrun.training.loop import average_of, gradients
from ptmrun.training.signals import Stop

OK, WARNING, SKIPPED, FAILED = "ok", "warning", "skipped", "failed"
SAMPLES, STEPS = 8, 80  # of overfitting one batch: a second or two for small models
BELOW_START = 0.95  # what the loss must fall below, as a share of its start or of a uniform prediction; and where the
ABOVE_LOWEST = 0.1  # lowest loss is known, what may remain above it. The objectives there are reach 0.52 to 0.88 and 0.01
LOW = 0.8  # times the loss of a uniform prediction, for a first loss; classifiers give 1.00 to 1.05
UNBALANCED = 10.0  # times as many images in the largest class as in the smallest


class Finding(NamedTuple):
    """One line of the table."""

    status: str
    what: str
    text: str


@dataclass(frozen=True)
class Part:
    """A stage that trains: what, on what, and how."""

    stage: str
    model: Callable[[], Any]  # a new one, always with the same weights
    split: Any
    loop: Any


def check(cfg: schema.Config) -> list[Finding]:
    """Prints a table of findings, and returns them. Raises UserError for what is wrong with config or data."""
    begun = time.perf_counter()
    outputs = Path(cfg.outputs)
    with tempfile.TemporaryDirectory(prefix="ptmrun-check-") as folder:
        cfg = by_folder(parsing.replace(cfg, outputs=folder))
        context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
        prepared = time.perf_counter() - begun
        findings = [about_data(context)]
        for part in parts(context):
            findings += examine(context, part)
        if not any(f.status in (SKIPPED, FAILED) for f in findings):
            if "pretrain" in chosen_stages(context):
                compute.note_pretraining(context)
            allowed = scratch.to_come(context)
            findings += [disk(context, outputs, allowed), *duration(context, prepared, allowed)]
    show(findings)
    console.print(f"Checked in {time.perf_counter() - begun:.0f} s", markup=False)
    return findings


def parts(context: Context) -> Iterator[Part]:
    """The stages to come that train; fine-tuning with the most labels."""
    cfg, stages = context.cfg, chosen_stages(context)
    if "pretrain" in stages:
        yield Part("pretrain", context.objective, context.data.corpus, cfg.pretrain)
    if "finetune" in stages:
        trial = best_trial(cfg)
        split = chosen_labels(context, trial)
        yield Part("finetune", lambda: new_model(context, trial)[0], split, finetune_settings(cfg, trial, len(split)))


def examine(context: Context, part: Part) -> Iterator[Finding]:
    """First on a few samples; on whole batches only when they will fit into memory."""
    model = part.model()
    yield about_parameters(part, model)
    small = context.data.without_augmentation(part.loop.model_copy(update={"batch_size": SAMPLES, "accumulate": 1}))
    batch = next(batches_of(context, model, part.split, small, context.cfg.seed, "check").iterate(0, 1))[0]
    expected = model.initial_loss(batch)
    yield first_loss(context, part, model, batch, expected)
    where = context.cfg.device
    alone, there = needs(context, part, model, batch), estimate.capacity(context.device)
    needed = needs(context, part, model, batch, where.processes) if where.shard else alone
    yield from overfit(context, part, model, batch, expected)
    if alone < there:
        yield whole_batch(context, part)
        yield checkpointed(context, part)
    elif needed < there:
        why = f"one process needs {gb(alone)}, of {gb(there)}; neither that nor what it takes is tried"
        yield Finding(SKIPPED, f"{part.stage}: a whole batch", why)
    yield memory(context, part, needed)


def about_data(context: Context) -> Finding:
    data = context.data
    text = f"{len(data.train):,} train, {len(data.val):,} val, {len(data.test):,} test"
    unreadable = len(data.unreadable) / (len(data.train) + len(data.val) + len(data.test) + len(data.unreadable))
    text += f"; {unreadable:.2%} unreadable"
    if data.train.labels is None:
        return Finding(WARNING if unreadable else OK, "data", text if labelled(context) else f"{text}; no labels")
    class_counts = counts(data.train.labels, len(data.classes)).tolist()
    text += f"; {len(class_counts)} classes of {min(class_counts):,} to {max(class_counts):,} training {data.noun}"
    unbalanced = max(class_counts) > UNBALANCED * min(class_counts)
    return Finding(WARNING if unreadable or unbalanced else OK, "data", text + ", unbalanced" * unbalanced)


def about_parameters(part: Part, model: Any) -> Finding:
    own, every, trained = methods.parameters(model.encoder), methods.parameters(model), methods.parameters(model, trainable=True)
    heads = "objective's heads" if part.stage == "pretrain" else "classifier"
    return Finding(
        OK, f"{part.stage}: parameters", f"{own:,} in the encoder, {every - own:,} in the {heads}; {trained:,} trained"
    )


def first_loss(context: Context, part: Part, model: Any, batch: dict[str, Any], expected: float | None) -> Finding:
    """The loss at the start beside that of a uniform prediction."""
    with torch.no_grad(), context.autocast():
        loss, _ = model(batch)
    value, what = float(loss.total / loss.n), f"{part.stage}: first loss"
    if expected is None:
        return Finding(OK if math.isfinite(value) else FAILED, what, f"{value:.3f}")
    low, high = LOW * expected, model.initial_within * expected
    text = f"{value:.3f}; a uniform prediction has {expected:.3f}; expected {low:.2f} to {high:.2f}"
    return Finding(OK if low <= value <= high else WARNING, what, text)


def overfit(context: Context, part: Part, model: Any, batch: dict[str, Any], expected: float | None) -> Iterator[Finding]:
    """Can it overfit one small batch, at a constant rate? And does every parameter that is trained get a gradient?"""
    optimizer = optim.build(optim.groups(model, part.loop, partial(depth_of, model.encoder), model.encoder.depth + 1), part.loop)
    for group in optimizer.param_groups:
        group["lr"] = part.loop.lr * group["lr_scale"]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    dead, losses, shown = {name for name in trained if not name.startswith(model.later)}, [], {}
    known = len(dead)
    for _ in range(STEPS + 1):
        rng.seed_everything(context.cfg.seed, "check/dropout")  # the same masks and units at every step
        with context.autocast():
            loss, shown = model(batch)
        losses.append(float(loss.total.detach() / loss.n))
        (loss.total / loss.n).backward()
        dead -= {name for name, p in trained.items() if p.grad is not None and bool(p.grad.any())}
        nn.utils.clip_grad_norm_(trained.values(), part.loop.clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
    text = f"{', '.join(sorted(dead)[:5])}: trained, and never get one" if dead else f"all {known} tensors get one"
    yield Finding(FAILED if dead else OK, f"{part.stage}: gradients", text)
    first, last = losses[0], losses[-1]
    aim = BELOW_START * min(first, first if expected is None else expected)
    if (lowest := model.lowest_loss(batch)) is not None:
        aim = lowest + ABOVE_LOWEST * (first - lowest)
    text = f"loss {first:.3f} -> {last:.3f} in {STEPS} steps on {len(batch['ids'])} samples, expected below {aim:.3f}"
    learned = last < aim
    if "accuracy" in shown:
        accuracy = float(shown["accuracy"].total / shown["accuracy"].n)
        text += f"; accuracy {accuracy:.2f}, expected 1"
        learned &= accuracy == 1
    frozen = not all(p.requires_grad for p in model.encoder.parameters())
    if not learned:
        text += "; frozen features may not allow it" if frozen else f"; it does not learn (lr={part.loop.lr:g})"
    yield Finding(OK if learned else WARNING if frozen else FAILED, f"{part.stage}: overfit one batch", text)


def whole_batch(context: Context, part: Part) -> Finding:
    """Loss and gradients of a real batch, augmented, in the config's micro-batches."""
    model, what = part.model(), f"{part.stage}: a whole batch"
    micros = next(batches_of(context, model, part.split, part.loop, context.cfg.seed, "check").iterate(0, 1))
    sums = gradients(model, model, micros, lambda _: context.autocast())
    total = average_of(*sums["loss"])
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if bad := [name for name, g in grads.items() if not bool(g.isfinite().all())]:
        return Finding(FAILED, what, f"loss {total:.3f}; gradients not finite: {', '.join(bad[:5])}")
    norm = float(nn.utils.get_total_norm(grads.values()))
    return Finding(
        OK, what, f"{sum(len(m['ids']) for m in micros)} samples, loss {total:.3f}, gradient norm {norm:.2f}, all finite"
    )


def checkpointed(context: Context, part: Part) -> Finding:
    """Two steps of the real loop with a checkpoint between them; going on from it must give the second step bit for bit."""
    loop = part.loop.model_copy(update={"checkpoint_every": 0.0})
    hashes = []
    for _ in range(2):  # the second goes on from the first one's checkpoint
        model = part.model()
        tags = {"stage": "check", "part": part.stage}
        with planned(context, model, part.split, loop, 2, context.cfg.seed, tags) as (batches, plan):
            training.fit(model, batches, plan)
        hashes.append(tensor_files.sha256(model.state_dict()))
    run, folder = context.run, context.run.path(ENCODER)
    if part.stage == "pretrain":
        model.encoder.save(folder, *context.processor.preprocessing)
        heads = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.")}
        tensor_files.save(run.path("checkpoints", "heads.safetensors"), heads)
        wrote, read = model.encoder.state_dict(), context.starting_encoder().state_dict()
    else:
        wrote, file = methods.trained(model), run.path("checkpoints", "finetuned", "check.safetensors")
        tensor_files.save(file, wrote)
        read = tensor_files.load(file)[0]
    hashes += [tensor_files.sha256(wrote), tensor_files.sha256(read)]
    same = [hashes[0] == hashes[1], hashes[2] == hashes[3]]
    text = "written, read back and gone on from, bit-equal"
    if not all(same):
        text = "going on from a checkpoint is not bit-equal" if same[1] else "what is read back is not what was written"
    return Finding(OK if all(same) else FAILED, f"{part.stage}: checkpoint", text)


def needs(context: Context, part: Part, model: Any, batch: dict[str, Any], parts: int = 1) -> int:
    """Bytes that a step on a whole micro-batch will need in a process, what is in use already included; parts: see
    estimate.training_state."""
    size = math.ceil(min(part.loop.batch_size, len(part.split)) / part.loop.accumulate)
    kept = estimate.activations(model, batch, context.autocast) * size / len(batch["ids"])
    return int(estimate.in_use(context.device)[0] + kept + estimate.training_state(model, part.loop, parts))


def memory(context: Context, part: Part, needed: int) -> Finding:
    there, peak = estimate.capacity(context.device), estimate.in_use(context.device)[1]
    where = " in the main process" if context.cfg.device.processes > 1 else ""
    text = f"estimated {gb(needed)}{where} with a batch of {min(part.loop.batch_size, len(part.split))}"
    status = OK if max(needed, peak) < 0.8 * there else WARNING
    if needed >= there:
        status, text = FAILED, f"{text}; raise {part.stage}.accumulate or lower {part.stage}.batch_size"
    return Finding(status, f"{part.stage}: memory", f"{text}; peak so far {gb(peak)}, of {gb(there)}")


def disk(context: Context, outputs: Path, allowed: estimate.Allowances) -> Finding:
    done, state = estimate.disk(context, allowed)
    there = next(p for p in (outputs.absolute(), *outputs.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    cache = sum(p.stat().st_size for kind in ("*.npy", "[!.]*.corpus/*") for p in cache_folder().glob(kind))
    text = f"run folder {gb(done)}, {gb(state)} more while it trains, {gb(free)} free; {gb(cache)} in {cache_folder()}"
    if not os.access(there, os.W_OK):
        return Finding(FAILED, "disk", f"{there}: cannot be written to")
    return Finding(OK if done + state < free else WARNING, "disk", text)


def duration(context: Context, prepared: float, allowed: estimate.Allowances) -> Iterator[Finding]:
    """With several processes, what a step of all takes too."""
    seconds, steps = estimate.duration(context, allowed)
    for stage, step in steps.items():
        if step.processes > 1:
            yield together(stage, step)
    seconds = {"prepare": prepared, **seconds}
    yield Finding(OK, "time", f"{clock(sum(seconds.values()))}: " + ", ".join(f"{k} {clock(v)}" for k, v in seconds.items()))


def together(stage: str, step: Step) -> Finding:
    """Of processes that each have a device like this one to itself."""
    text = f"{step.seconds:.3g} s a step, {step.alone / step.seconds:.3g} times as fast as one: {step.computing:.3g} s of "
    text += f"computing (one takes {step.alone:.3g} s here; each on a device like this one), {step.wire:.3g} s for "
    text += f"{gb(step.sent)} over the wire (assumed: {BANDWIDTH / 1e9:g} GB/s, nothing overlaps)"
    stalls = step.stalls(stage)
    return Finding(WARNING if stalls else OK, f"{stage}: {step.processes} processes", "; ".join([text, *stalls]))


def show(findings: list[Finding]) -> None:
    for status, what, text in findings:
        style = {WARNING: "yellow", SKIPPED: "yellow", FAILED: "bold red"}.get(status)
        console.print(f"{status:<9}{what:<30}{text}", style=style, markup=False)


def gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min" if minutes > 2 else f"{seconds:.0f} s"
