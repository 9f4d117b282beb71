"""What comes before the stages: device, data, sizes, and the weights that a run starts from."""

import os
from typing import Any

import torch

from ptmrun.batch import packed
from ptmrun.config import choices, parsing, specs
from ptmrun.config.init_source import origin
from ptmrun.config.schema import Config
from ptmrun.data.modality import Data, LoadRequest, Progress
from ptmrun.downstream.class_counts import imbalance
from ptmrun.errors import UserError, printable
from ptmrun.finetuning import methods
from ptmrun.reports import verdict
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import EXAMPLES, PROCESSOR, TRAINED_ON, source, trained_on
from ptmrun.runs.progress import Bar
from ptmrun.stages import budget, compute
from ptmrun.stages.context import Context, labelled
from ptmrun.stages.initial_weights import as_published, take_outside, take_parent
from ptmrun.stages.networks import family_of, modality_of, module_of, problem_of
from ptmrun.stages.part_weights import begun, settle_parts, take_parts
from ptmrun.stages.pictures import draw
from ptmrun.stages.trials import label_counts
from ptmrun.storage import digests, tensor_files
from ptmrun.storage.files import remove
from ptmrun.training import device
from ptmrun.training.signals import Stop, check_stop

SHOWN = 8  # test samples that go with the weights
MOST_COUNTED = 200  # classes whose samples the manifest counts


def prepare(run: Run, cfg: Config, stop: Stop) -> Context:
    """Device, data and model sizes; everything `auto` becomes a value, and the saved config complete."""
    cfg, where, notes = device.resolve(cfg)
    cfg, chosen, longest = as_published(cfg)
    cfg, more, of_parts = settle_parts(run, cfg)
    with Bar(run, "reading", 1, quiet=True) as bar:

        def reading(title: str, done: int, total: int) -> None:
            check_stop(stop)
            bar.reading(title, done, total)

        data = read(run, cfg, reading, longest or of_parts)
    fingerprint = run.manifest.get("data", {}).get("fingerprint", data.fingerprint)
    if not data.known_as(fingerprint):
        raise UserError(
            f"dataset={cfg.dataset.name}: the data has changed since the run was made (was {str(fingerprint)[:12]}); refused"
        )
    cfg = parsing.replace(cfg, **data.resolved_settings)
    context = Context(run, cfg, where, data.processor(where), data.classes, data.facts, data, stop)
    changes, why = context.family.resolve(cfg.model, context.processor.spec)
    context.cfg = cfg = parsing.replace(cfg, **{f"model__{k}": v for k, v in changes.items()})
    check_labels(context)
    context.cfg, decided = by_rule(context)
    cfg = context.cfg
    if cfg.stage != "pretrain" and data.train.labels is not None:
        decided += imbalance(data.train.labels, data.classes)
    decided += doubts(context)
    sizes = f"{len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    run.say(f"Data: {cfg.dataset.name}, {sizes}, {data}")
    told = [*data.notes, *notes, *chosen, *more, *why, *decided]
    for line in told:
        run.say(f"  {line}")
    if data.created_splits:
        run.write_json("splits.json", data.created_splits)
    if data.unreadable:
        run.write("unreadable.txt", "\n".join(map(printable, data.unreadable)) + "\n")
    if data.faults:
        run.write("faults.txt", "\n".join(map(printable, data.faults)) + "\n")
    if origin(cfg.init) == "run":
        take_parent(context)
    elif cfg.init != "random":
        take_outside(context)
    elif parts := begun(cfg):
        take_parts(context, parts)
    if "compute" not in run.manifest:
        run.update(compute={"before": compute.of_parent(cfg)})
    if cfg.budget:
        cfg, why = budget.size_steps(context)
        context.cfg = cfg
        for line in why:
            run.say(f"  {line}")
    run.update(data={"fingerprint": data.fingerprint, "classes": data.classes, **data.facts, **for_report(data, told)})
    if not run.path(EXAMPLES).exists():
        tensor_files.save(run.path(EXAMPLES), packed(next(data.test.evenly_spaced(SHOWN).all())))
    note_trained_on(context)
    run.write("config.yaml", parsing.dump(cfg))
    draw(run, data.pictures_of_samples(cfg, context.processor))
    return context


def for_report(data: Data, notes: list[str]) -> dict[str, Any]:
    """What the report says of the data: samples of each split, of each class in it, what was decided."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    counts = {
        name: (labels.bincount(minlength=len(data.classes)) if labels.ndim == 1 else labels.sum(0)).tolist()
        for name, split in splits.items()
        if (labels := split.labels) is not None and len(data.classes) <= MOST_COUNTED
    }
    sizes = {name: len(split) for name, split in splits.items()}
    return {"described": str(data), "sizes": sizes, "counts": counts, "notes": [printable(line) for line in notes]}


def note_trained_on(context: Context) -> None:
    """Writes the numbers of the samples that this run trains on. Says how many test samples the run that `init` names was trained
    on, and counts them with those that this one trains on."""
    data, cfg = context.data, context.cfg
    train, val, test = (split.group_ids for split in (data.train, data.val, data.test))
    if train is None or val is None or test is None:
        return
    own, file = torch.cat([train, val]).unique(), context.run.path(TRAINED_ON)
    parts = begun(cfg)
    if cfg.stage != "evaluate" and not file.exists():
        tensor_files.save(file, {"ids": own, **{name: trained_on(part.init) for name, part in parts.items()}})
    noted = tensor_files.load(file)[0] if parts else {}
    before = {cfg.init: torch.isin(test, trained_on(cfg.init))}
    for name in () if parts else family_of(cfg).parts(cfg.model):
        before[cfg.init] |= data.test.part_seen(name, trained_on(cfg.init, name))
    before |= {part.init: data.test.part_seen(name, noted[name]) for name, part in parts.items()}
    for init, seen in before.items():
        if count := int(seen.sum()):
            context.run.say(f"  Warning: {init} was trained on {count:,} of the {len(test):,} test {data.noun}")
    every = torch.stack([*before.values()]).any(0)
    if every.any():
        data.test_seen = int((every | torch.isin(test, own)).sum())


def read(run: Run, cfg: Config, progress: Progress, longest: int | None = None) -> Data:
    """The data of the kind that the dataset provides."""
    request = LoadRequest(
        read=module_of(cfg, "dataset").read,
        cfg=cfg,
        family=family_of(cfg),
        problem=problem_of(cfg),
        folder=source(run, cfg, PROCESSOR),
        progress=progress,
        longest=longest,
    )
    data = modality_of(cfg).load(request)
    if not run.path(PROCESSOR).exists():
        part = run.path(f"{PROCESSOR}.part")
        remove(part)  # a left-over, or a link that leads elsewhere
        data.save_processor(part)
        if part.exists():  # a kind of data may have nothing to save
            digests.seal(part)
            os.replace(part, run.path(PROCESSOR))
    return data


def by_rule(context: Context) -> tuple[Config, list[str]]:
    """What is auto in the fine-tuning method, settled by the data; and notes. Raises UserError for a resolution too low."""
    cfg, data = context.cfg, context.data
    notes: list[str] = []
    if cfg.finetune.name in methods.RULES and data.train.labels is not None:
        most = max(len(data.train) if n is None else min(n * len(data.classes), len(data.train)) for n in label_counts(cfg))
        changes, notes = methods.RULES[cfg.finetune.name](cfg.finetune, most, context.processor.spec.size)
        cfg = parsing.replace(cfg, **{f"finetune__{k}": v for k, v in changes.items()})
    encoder = context.encoder().eval()
    if setting := context.processor.configure(encoder, cfg.finetune):
        try:
            with torch.no_grad():
                encoder.features(context.processor(next(data.train.evenly_spaced(1).all())))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{setting}: model={cfg.model.name} cannot work at it ({reason})") from None
    return cfg, notes


def doubts(context: Context) -> list[str]:
    """Warnings of what runs, and tells or teaches nothing."""
    cfg, data, lines = context.cfg, context.data, []
    if cfg.stage in ("all", "pretrain"):
        others = min(cfg.pretrain.batch_size, len(data.corpus)) > 1
        if module_of(cfg, "task").Objective.compares and not others:
            what = f"task={cfg.task.name} tells a sample from others of its batch, and there are none"
            lines.append(f"Warning: {what}: nothing is learned; raise pretrain.batch_size={cfg.pretrain.batch_size}")
    if labelled(context) and len(data.val) < verdict.LEAST:
        what = f"the validation split has {len(data.val)} {data.noun}, too few to tell anything"
        lines.append(f"Warning: {what}: probes, finetune.keep_probe and searches judge by it; raise dataset.val_fraction")
    if labelled(context) and cfg.stage != "pretrain":
        lines += data.doubts(context.encoder)
    return lines


def check_labels(context: Context) -> None:
    """Raises UserError, before any training, for labels that the stages to come need and the data lacks."""
    cfg, data = context.cfg, context.data
    task = specs.spec("task", cfg.task.name)
    if "labels" in task.needs and cfg.stage in ("all", "pretrain") and not labelled(context):
        provided, there = specs.spec("model", cfg.model.name).provides, choices.names("task")
        fits = [t for t in there if "labels" not in specs.spec("task", t).needs and specs.spec("task", t).requires <= provided]
        raise UserError(f"task={cfg.task.name}: needs classes, the data has none; without them there is: task={', '.join(fits)}")
    if data.no_classes and (cfg.stage != "pretrain" or "labels" in task.needs):
        raise UserError(f"stage={cfg.stage}: {data.no_classes}; choose another column of labels, or other class folders")
    if cfg.stage == "pretrain" or (cfg.stage == "all" and not labelled(context)):
        return
    if not labelled(context):
        raise UserError(
            f"stage={cfg.stage}: needs at least two classes; the data has {len(data.classes)} (class folders give classes)"
        )
    if cfg.stage == "finetune" and not context.problem.trains:
        raise UserError(f"stage=finetune: downstream={cfg.downstream.name} trains nothing; stage=evaluate")
    labels = data.train.labels
    if labels is not None and labels.ndim == 1 and len(there := labels.unique()) < 2:
        one = f"all {len(labels):,} training {data.noun} are {data.classes[int(there[0])]}"
        raise UserError(f"stage={cfg.stage}: needs at least two classes; {one}")
    for count in label_counts(cfg):
        context.problem.subset(data.train, data.classes, count, cfg.seed)
