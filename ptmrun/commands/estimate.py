"""What a run will take: memory, disk and time, from real batches, real files and real steps."""

import json
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from ptmrun.commands.scaling import Step, sent
from ptmrun.models.recompute import blocks
from ptmrun.runs.lineage import ENCODER
from ptmrun.stages import probe, scratch
from ptmrun.stages.budget import seconds_per_step, trial_step
from ptmrun.stages.context import Context, batches_of, chosen_stages
from ptmrun.stages.pretrain import validate
from ptmrun.stages.trials import (
    Trial,
    chosen_labels,
    label_counts,
    new_model,
    predict_split,
    probed,
    start_from_probe,
    trials,
    weights_file,
)
from ptmrun.training import optim
from ptmrun.training.schedule import steps_of

PICTURES = 550_000  # bytes of the figures, which report.html holds once more
METRICS_LINE = 270  # bytes
SAMPLES = 32  # by which the size of predictions is judged
READ = 2  # steps whose batches are made, to see how long that takes


def activations(model: nn.Module, batch: dict[str, Any], autocast: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of a batch, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), autocast():
        loss, _ = model(batch)  # its graph keeps what was packed alive, so no address is counted twice
        return sum(kept.values()) if loss.total.requires_grad else 0


def training_state(model: nn.Module, loop: Any, parts: int = 1) -> int:
    """Bytes of weights, gradients, the optimizer's moments and the average of the weights; where they lie in several parts, of
    one of these, of what is in no block, of the largest block with its gradient, and of the main process's whole weights."""
    trained = [p for p in model.parameters() if p.requires_grad]
    copies = 1 + bool(loop.ema)
    state = sum(p.nbytes for p in [*model.parameters(), *trained * copies]) + optim.memory(sum(p.numel() for p in trained), loop)
    if parts == 1:
        return state
    sizes = [{p: p.nbytes for p in block.parameters()} for block in blocks(model)]
    inside = {p for block in sizes for p in block}
    rest = sum(p.nbytes for p in model.parameters() if p not in inside)
    whole = sum(p.nbytes for p in model.parameters())
    return state // parts + rest + 2 * max(sum(block.values()) for block in sizes) + whole


def in_use(device: torch.device) -> tuple[int, int]:
    """Bytes that this process holds, now and at its peak: on a CUDA device its memory there, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else peak, peak


def capacity(device: torch.device) -> int:
    """Bytes that the device has, or that the process's control group allows."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return total if text == "max" else min(total, int(text))


# Of training from scratch, by number of labels; empty where nothing is compared with it.
Allowances = dict[int | None, scratch.Allowance]


def disk(context: Context, allowed: Allowances) -> tuple[int, int]:
    """(bytes of the run folder when it is done, bytes more while it trains), from the files that the check has written."""
    run, cfg, data = context.run, context.cfg, context.data
    stages = chosen_stages(context)
    files = [p for p in run.folder.rglob("*") if p.is_file()]
    state = max((p.stat().st_size for p in files if p.parent.name == "state"), default=0)
    if cfg.on_nan == "recover":
        state = state * 3 // 2  # the good state in the check's checkpoint is of step 0 and has no moments yet
    total = PICTURES + sum(float(p.stat().st_size) for p in files if "checkpoints" not in p.parts)
    steps = rest = 0.0
    if "pretrain" in stages:
        steps += steps_of(cfg.pretrain, len(data.corpus)) / cfg.pretrain.log_every
        total += sum(p.stat().st_size for p in (*run.path(ENCODER).iterdir(), run.path("checkpoints/heads.safetensors")))
    repeats = scratch.repeats(cfg, allowed)
    for labels in label_counts(cfg) if "finetune" in stages or "evaluate" in stages else []:
        tuned = trials(cfg, "tuned", labels)
        split = chosen_labels(context, tuned[0])
        steps += len(tuned) * steps_of(cfg.finetune, len(split)) / cfg.finetune.log_every if "finetune" in stages else 0
        steps += allowed[labels].steps * repeats / cfg.finetune.log_every if allowed else 0
        if "finetune" in stages:
            wrote = next(p for p in files if p.parent.name == Path(weights_file(tuned[0])).parent.name)
            total += len(tuned) * wrote.stat().st_size
        if "evaluate" in stages:
            predicted, row, other = prediction(context, tuned[0])
            total += len(tuned) * (predicted * (len(data.test) + len(data.val)) + row * len(data.test))
            total += repeats * len(allowed[labels].points) * predicted * len(data.test) if allowed else 0
            rest = other * len(data.test)  # of the most labels alone
    return int(total + rest + steps * METRICS_LINE), state


def prediction(context: Context, trial: Trial) -> tuple[float, float, float]:
    """Bytes that are kept of what is predicted of one sample: of all predictions, in predictions.parquet before it is compressed,
    and in the problem's own files."""
    problem, some = context.problem, context.data.test.evenly_spaced(SAMPLES)
    with context.autocast():
        predictions = predict_split(context, new_model(context, trial)[0], some)
    rows = pa.table(problem.columns_of_predictions(predictions, some, context.classes))
    own = problem.files(predictions, some, context.cfg.downstream)
    written = sum(len(json.dumps(content, indent=2)) for content in own.values())
    return sum(x.nbytes for x in predictions.values()) / len(some), rows.nbytes / len(some), written / len(some)


def step_of(context: Context, model: nn.Module, split: Any, loop: Any, alone: float) -> Step:
    """Of all processes that the config asks for, where one alone takes so many seconds."""
    samples, device = min(loop.batch_size, len(split)), context.cfg.device
    micros = min(loop.accumulate, samples)
    batches = batches_of(context, model, split, loop, context.cfg.seed, "check")
    reading = timed(list, batches.iterate(0, READ)) / READ if device.processes > 1 else 0.0
    over = sent(model, micros, device.processes, device.shard)
    return Step(samples, micros, device.processes, alone, reading, over)


def duration(context: Context, allowed: Allowances) -> tuple[dict[str, float], dict[str, Step]]:
    """Seconds of each stage to come, without the logistic regressions of the baselines and the figures; and what a step takes in
    those that train."""
    cfg, data, stages = context.cfg, context.data, chosen_stages(context)
    seconds, taken = dict.fromkeys(stages, 0.0), {}
    if "pretrain" in stages:
        objective = context.objective()
        batches = batches_of(context, objective, data.corpus, cfg.pretrain, cfg.seed, "check")
        alone = seconds_per_step(context, objective, batches, cfg.pretrain)
        taken["pretrain"] = step_of(context, objective, data.corpus, cfg.pretrain, alone)
        seconds["pretrain"] = taken["pretrain"].seconds * steps_of(cfg.pretrain, len(data.corpus))
        if cfg.pretrain.probes:
            look = timed(probe.probe, objective.encoder, data.train, data.val, context.processor, context.autocast)
            look += timed(validate, context, objective, data.val_corpus) if data.val_corpus is not None else 0.0
            seconds["pretrain"] += (cfg.pretrain.probes + 1) * look
    repeats = scratch.repeats(cfg, allowed)
    for labels in label_counts(cfg) if "finetune" in stages or "evaluate" in stages else []:
        tuned = trials(cfg, "tuned", labels)
        split = chosen_labels(context, tuned[0])
        model, _ = new_model(context, tuned[0])
        start = timed(start_from_probe, context, model, split, cfg.seed) if probed(model, cfg.finetune) else 0.0
        steps = steps_of(cfg.finetune, len(split))
        if "finetune" in stages:
            taken["finetune"] = step_of(context, model, split, cfg.finetune, trial_step(context, tuned[0], split))
            seconds["finetune"] += len(tuned) * (start + steps * taken["finetune"].seconds)
        if "evaluate" in stages:
            predict = timed(predict_split, context, model, data.test)
            seconds["evaluate"] += len(tuned) * predict
            if allowed:
                alone = trial_step(context, trials(cfg, "scratch", labels)[0], split)
                each = step_of(context, model, split, cfg.finetune, alone).seconds
                seconds["evaluate"] += repeats * (allowed[labels].steps * each + len(allowed[labels].points) * predict)
    return seconds, taken


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begun
