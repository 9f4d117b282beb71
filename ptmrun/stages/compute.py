"""How much compute the parts of a run take: floating-point operations of training (training/flops.py), and beside them steps,
samples seen and CPU seconds."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptmrun.config.init_source import origin
from ptmrun.models.recompute import recompute
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, UNFINISHED
from ptmrun.stages.context import Context, batches_of
from ptmrun.stages.part_weights import begun
from ptmrun.stages.trials import Trial, chosen_labels, features_once, finetune_settings, looks, new_model, probed, trial_steps
from ptmrun.storage import tensor_files
from ptmrun.training import flops
from ptmrun.training.schedule import steps_of

COUNTED = 4  # steps of a fit that are counted: of texts not all are as long


@dataclass(frozen=True)
class Fit:
    """flops: of all steps. samples: seen, each as often as it was."""

    flops: float
    steps: int
    samples: int


def step_flops(context: Context, model: Any, split: Any, loop: Any, steps: int, seed: int) -> tuple[float, int]:
    """(the mean of COUNTED steps of the fit, evenly spaced; samples of a step) of a model that is thrown away. What is computed
    again counts once."""
    if context.cfg.device.recompute:
        recompute(model, False)
    batches = batches_of(context, model, split, loop, seed, "flops")
    chosen = sorted({steps * i // COUNTED for i in range(COUNTED)})

    def begun(step: int) -> list[dict[str, Any]]:
        model.begin_at(step / steps)
        return next(batches.iterate(step, step + 1))

    return flops.of_steps(model, map(begun, chosen), lambda _: context.autocast()), batches.batch_size


def pretraining(context: Context) -> Fit:
    loop, corpus = context.cfg.pretrain, context.data.corpus
    steps = steps_of(loop, len(corpus))
    each, size = step_flops(context, context.objective(), corpus, loop, steps, context.cfg.seed)
    return Fit(each * steps, steps, size * steps)


def note_pretraining(context: Context) -> None:
    """Counts the pretraining and puts it into the manifest, once a run."""
    known = context.run.manifest["compute"]
    if "pretrain" not in known:
        context.run.update(compute={**known, "pretrain": asdict(pretraining(context))})


def fine_tuning(context: Context, trial: Trial) -> Fit:
    """Of a trial of this kind: its steps and, where a linear probe on frozen features comes first or is all, these features."""
    split = chosen_labels(context, trial)
    loop, steps = finetune_settings(context.cfg, trial, len(split)), trial_steps(context.cfg, trial, len(split))
    model, _ = new_model(context, trial)
    frozen = features_once(model, loop)
    features = 0.0
    if frozen or probed(model, loop):
        times = 1 if frozen else looks(model.encoder, split)
        some = split.evenly_spaced(loop.batch_size)
        with flops.counter() as counted:
            context.features(model.encoder, some)
        features = times * len(split) * counted.get_total_flops() / len(some)
    if frozen:
        return Fit(features, steps, len(split))
    each, size = step_flops(context, model, split, loop, steps, trial.seed)
    return Fit(features + each * steps, steps, size * steps)


def of_parent(cfg: Any) -> float | None:
    """Of the pretrainings that gave the weights of `init`, or of the parts of the model; None where they are not known: weights
    from outside, or runs of a version that did not count."""
    inits = [part.init for part in begun(cfg).values()] if cfg.init == "random" else [cfg.init]
    total = 0.0
    for init in inits:
        known = spent(Run.open(Path(init))) if origin(init) == "run" else None
        if known is None:
            return None
        total += known
    return total


def spent(run: Run) -> float | None:
    """On all pretrainings that gave the encoder of a run."""
    known, state = run.manifest.get("compute", {}), run.path(*UNFINISHED)
    if known.get("before") is None:
        return None
    share = 1.0
    if state.exists() and not run.path(ENCODER).exists():
        at = tensor_files.load(state)[1]
        share = at["step"] / at["steps"]
    return known["before"] + share * known.get("pretrain", {}).get("flops", 0.0)
