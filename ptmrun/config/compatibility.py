"""Combinations of choices and keys that cannot work."""

from ptmrun.config import choices, specs
from ptmrun.config.init_source import origin
from ptmrun.config.schema import Config, ImageFinetune, TextPretrain

METHOD_NEEDS = {  # of fine-tuning methods, in words
    "maps": "a network that works at any side",
    "layers": "plain linear or convolutional layers in its blocks",
    "blocks": "residual blocks",
    "values": "layers of keys and values",
    "prefixes": "transformers' own attention",
}


def incompatible(names: dict[str, str]) -> list[str]:
    """Combinations that cannot work, with the list of what can."""
    lines = []
    if "model" in names and "finetune" in names and not fine_tunes(names["finetune"], names["model"]):
        unmet = specs.spec("finetune", names["finetune"]).requires - specs.spec("model", names["model"]).provides
        wanted = ", ".join(METHOD_NEEDS[x] for x in sorted(unmet))
        fits = [m for m in choices.names("model") if fine_tunes(names["finetune"], m)]
        methods = [f for f in choices.names("finetune") if fine_tunes(f, names["model"])]
        lines.append(
            f"model={names['model']} finetune={names['finetune']}: the method needs {wanted}, which the model does not have; "
            f"with finetune={names['finetune']} there is: model={', '.join(fits)}; with model={names['model']}: "
            f"finetune={', '.join(methods)}"
        )
    if "model" in names and "task" in names:
        model = specs.spec("model", names["model"])
        if lacking := specs.spec("task", names["task"]).requires - model.provides:
            fits = [t for t in choices.names("task") if specs.spec("task", t).requires <= model.provides]
            lines.append(
                f"model={names['model']} task={names['task']}: the task needs {', '.join(sorted(lacking))}, "
                f"which the model does not have; with model={names['model']} there is: task={', '.join(fits)}"
            )
    if "model" in names and "downstream" in names:
        problem = specs.spec("downstream", names["downstream"])
        if lacking := problem.requires - specs.spec("model", names["model"]).provides:
            fits = [m for m in choices.names("model") if problem.requires <= specs.spec("model", m).provides]
            lines.append(
                f"model={names['model']} downstream={names['downstream']}: the problem needs {', '.join(sorted(lacking))}, which "
                f"the model does not have; with downstream={names['downstream']} there is: model={', '.join(fits)}"
            )
    for group in ("model", "task", "downstream"):
        if group in names and "dataset" in names:
            needs, there = specs.spec(group, names[group]).needs, specs.spec("dataset", names["dataset"]).provides
            if lacking := needs - there:
                fits = [d for d in choices.names("dataset") if needs <= specs.spec("dataset", d).provides]
                others = [x for x in choices.names(group) if specs.spec(group, x).needs <= there]
                lines.append(
                    f"{group}={names[group]} dataset={names['dataset']}: the data has no {', '.join(sorted(lacking))}; "
                    f"with {group}={names[group]} there is: dataset={', '.join(fits)}; "
                    f"with dataset={names['dataset']}: {group}={', '.join(others)}"
                )
    return lines


def fine_tunes(method: str, model: str) -> bool:
    return specs.spec("finetune", method).requires <= specs.spec("model", model).provides


def contradictions(config: Config) -> list[str]:
    """Keys that are right alone and wrong together."""
    lines = []
    for name, loop in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if (loop.epochs is None) == (loop.steps is None):
            lines.append(f"{name}.epochs, {name}.steps: set exactly one of them, the other to null")
        if loop.steps == "auto" and name == "pretrain":
            lines.append("pretrain.steps=auto: expected a number (finetune.steps alone follows from the number of labels)")
        if loop.layer_decay == "auto" and name == "pretrain":
            lines.append("pretrain.layer_decay=auto: expected a number (finetune.layer_decay alone follows from the labels)")
        if loop.accumulate > loop.batch_size:
            lines.append(f"{name}.accumulate={loop.accumulate}: expected at most {name}.batch_size={loop.batch_size}")
        if loop.min_lr > loop.lr:
            lines.append(f"{name}.min_lr={loop.min_lr:g}: expected at most {name}.lr={loop.lr:g}")
    processes, stages = (
        config.device.processes,
        {"all": "pretrain finetune", "pretrain": "pretrain"}.get(config.stage, "finetune"),
    )
    for name, loop in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if name in stages and loop.accumulate < processes:
            why = f"a step has {name}.accumulate={loop.accumulate} micro-batches, and each process takes one at least"
            lines.append(
                f"device.processes={processes}: {why}; expected at most {loop.accumulate}, or a new run with more of these"
            )
    if config.device.shard:
        lines += unsharded(config, stages.split())
    if (
        isinstance(config.finetune, ImageFinetune)
        and isinstance(config.finetune.resolution, int)
        and "maps" not in specs.spec("model", config.model.name).provides
    ):
        fits = [m for m in choices.names("model") if "maps" in specs.spec("model", m).provides]
        lines.append(
            f"finetune.resolution={config.finetune.resolution}: model={config.model.name} works at one side only; "
            f"there is: model={', '.join(fits)}"
        )
    mixed = [key for key in ("mixup", "cutmix") if getattr(config.finetune, key, 0)]
    if mixed and "labels" not in specs.spec("downstream", config.downstream.name).needs:
        what = f"mixes the classes of whole images, which downstream={config.downstream.name} has not"
        lines += [f"finetune.{key}={getattr(config.finetune, key):g}: {what}; leave it out" for key in mixed]
    if (
        isinstance(config.pretrain, TextPretrain)
        and config.pretrain.document_mask
        and "sentence_pairs" in specs.spec("task", config.task.name).requires
    ):
        why = f"task={config.task.name} reads pairs of texts, which are not packed"
        lines.append(f"pretrain.document_mask=true: {why}; leave it out")
    if config.stage == "evaluate" and origin(config.init) != "run":
        lines.append("stage=evaluate: needs init=<run folder> of a run that fine-tuned")
    if config.budget is not None and config.stage != "all":
        lines.append(f"budget={config.budget}: sizes the three stages together, so it goes with stage=all")
    return lines


def unsharded(config: Config, stages: list[str]) -> list[str]:
    """Why weights cannot lie in parts, one in each process."""
    lines, processes = [], config.device.processes
    if processes == 1:
        lines.append(
            "device.shard=true: each of several processes has a part of the weights; give device.processes=2 or more too"
        )
    if config.device.compile:
        lines.append("device.shard=true device.compile=true: compiled code gathers no weights; leave one of them out")
    for stage, group in (("pretrain", "task"), ("finetune", "finetune")):
        loop, name = getattr(config, stage), getattr(config, group).name
        if stage not in stages:
            continue
        if loop.accumulate >= processes and loop.accumulate % processes:
            why = f"{stage}.accumulate={loop.accumulate} micro-batches cannot be shared equally by device.processes={processes}"
            lines.append(f"device.shard=true: {why}; expected a multiple")
        if specs.spec(group, name).whole_weights:
            fits = [x for x in choices.names(group) if not specs.spec(group, x).whole_weights]
            lines.append(f"device.shard=true: {group}={name} needs its weights whole; there is: {group}={', '.join(fits)}")
    return lines
