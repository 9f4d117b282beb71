"""The baseline from scratch: the same network from random weights, all of them trained with the labels of a trial, for as much
compute as pretraining and fine-tuning took together.

One training at a constant rate gives the score at several amounts of compute: at each of them a short decay of the rate branches
off it (warm-up, stable, decay: Hägele et al. 2024, arXiv:2405.18392). What it reached is the best of these on the validation
split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ptmrun.downstream.base import Model, Predictions
from ptmrun.errors import UserError
from ptmrun.reports import significance, verdict
from ptmrun.runs.lineage import weights_hash
from ptmrun.stages import compute, side_by_side
from ptmrun.stages.context import Context, chosen_stages, place_of, planned
from ptmrun.stages.trials import (
    Trial,
    chosen_labels,
    finetune_settings,
    label_counts,
    new_model,
    probed,
    saved_predictions,
    start_from_probe,
    trial_steps,
    trials,
    validation_score,
)
from ptmrun.storage import part_files
from ptmrun.training import loop as training
from ptmrun.training.schedule import decaying
from ptmrun.training.signals import check_stop

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the compute, at which there is a score; and at fine-tuning's own
DECAY = 0.2  # of the steps up to a point, in which the rate falls
BRANCHED = 1 - DECAY + DECAY * sum(SHARES)  # times the longest, that all of these take together
UNKNOWN = 10  # times the compute of fine-tuning, where that of the pretraining is not known
MOST = 2  # times the compute of pretraining and all fine-tuning, that repeats may take where their number is auto


@dataclass(frozen=True)
class Allowance:
    """What training from scratch is given with a number of labels. All in floating-point operations of training."""

    tuned: compute.Fit
    total: float
    known: bool  # whether that is what pretraining and fine-tuning took together
    step: float  # of one step from scratch
    batch_size: int

    @property
    def compute(self) -> dict[str, Any]:
        """As the verdict has it."""
        return {"tuned": self.tuned.flops, "total": self.total, "known": self.known}

    @property
    def points(self) -> list[int]:
        """Steps after which there is a score, the fewest first."""
        wanted = [*(share * self.total for share in SHARES), self.tuned.flops]
        return sorted({max(1, round(flops / self.step)) for flops in wanted})

    @property
    def short(self) -> int:
        """That of `points` which takes what fine-tuning alone does."""
        return max(1, round(self.tuned.flops / self.step))

    @property
    def steps(self) -> int:
        """Of the constant part and all branches."""
        return stable(self.points[-1]) + sum(n - stable(n) for n in self.points)


def stable(steps: int) -> int:
    """Steps of a training with so many in all before its rate falls."""
    return round((1 - DECAY) * steps)


def step_of(context: Context, labels: int | None) -> tuple[float, int]:
    """Floating-point operations and samples of a step from scratch."""
    trial = trials(context.cfg, "scratch", labels)[0]
    split = chosen_labels(context, trial)
    loop, steps = finetune_settings(context.cfg, trial, len(split)), trial_steps(context.cfg, trial, len(split))
    return compute.step_flops(context, new_model(context, trial)[0], split, loop, steps, trial.seed)


def allowance(context: Context, labels: int | None) -> Allowance:
    """Counted on real steps: a function of config, data and the run that `init` names."""
    cfg = context.cfg
    fit = compute.fine_tuning(context, trials(cfg, "tuned", labels)[0])
    step, size = step_of(context, labels)
    pretraining = compute.spent(context.run)
    own = context.run.manifest["compute"].get("pretrain", {}).get("flops", 0.0)
    total = max(UNKNOWN * fit.flops, own + fit.flops) if pretraining is None else pretraining + fit.flops
    return Allowance(fit, total, pretraining is not None, step, size)


def allowances(context: Context) -> dict[int | None, Allowance]:
    """What training from scratch is given, by number of labels."""
    return {labels: allowance(context, labels) for labels in label_counts(context.cfg)}


def to_come(context: Context) -> dict[int | None, Allowance]:
    """The same at the beginning of a run, with the pretraining counted; empty where nothing will be compared with it."""
    stages = chosen_stages(context)
    pretrained = "pretrain" in stages or weights_hash(context.run) is not None
    wanted = context.problem.trains and "scratch" in context.cfg.evaluate.baselines
    return allowances(context) if "evaluate" in stages and wanted and pretrained else {}


def after_pretraining(context: Context) -> float:
    """Floating-point operations of all trainings that follow the pretraining of a run."""
    cfg, flops = context.cfg, 0.0
    if not context.problem.trains or "finetune" not in chosen_stages(context):
        return flops
    allowed = to_come(context)
    for labels in label_counts(cfg):
        each = allowed[labels].tuned if allowed else compute.fine_tuning(context, trials(cfg, "tuned", labels)[0])
        flops += cfg.finetune.seeds * each.flops
    return flops + repeats(cfg, allowed) * sum(each.steps * each.step for each in allowed.values())


def described(cfg: Any, allowed: dict[int | None, Allowance]) -> str:
    """The same in words."""
    steps = ", ".join(f"{a.points[-1]:,}" for a in allowed.values())
    given = " and ".join(dict.fromkeys(verdict.reference(a.compute) for a in allowed.values()))
    times = f"{repeats(cfg, allowed)} of {cfg.finetune.seeds} repeats (evaluate.scratch_repeats)"
    return f"From scratch {given}: {steps} steps, {times}"


def repeats(cfg: Any, allowed: dict[int | None, Allowance]) -> int:
    """How many of the trials of fine-tuning are trained from scratch too: `evaluate.scratch_repeats`; with auto at least one,
    and as many as take at most MOST times the compute that pretraining and all fine-tuning took; none where nothing is
    compared."""
    if not allowed:
        return 0
    if cfg.evaluate.scratch_repeats != "auto":
        return min(cfg.evaluate.scratch_repeats, cfg.finetune.seeds)
    once = sum(a.steps * a.step for a in allowed.values())
    pretraining = max(a.total - a.tuned.flops for a in allowed.values())
    spent = pretraining + cfg.finetune.seeds * sum(a.tuned.flops for a in allowed.values())
    return max(1, min(cfg.finetune.seeds, int(MOST * spent / once)))


def train(context: Context, allowed: dict[int | None, Allowance], repeats: int) -> None:
    """Trains the baseline for all numbers of labels side by side, where that is possible; `compared` trains what is missing."""
    tasks = [(trial, each) for labels, each in allowed.items() for trial in trials(context.cfg, "scratch", labels)[:repeats]]
    longest = sorted(tasks, key=lambda task: -task[1].steps * task[1].step)
    if len(tasks) > 1 and side_by_side.possible(context, new_model(context, tasks[0][0])[1][1]):
        steps = sum(each.steps for _, each in tasks)
        title = f"{place_of(context, 'evaluate')}from scratch"
        side_by_side.train(context, title, [partial(curve, context, trial, each) for trial, each in longest], steps)


def compared(context: Context, labels: int | None, tuned: list[Predictions], allowed: Allowance, repeats: int) -> dict[str, Any]:
    """Trains the baseline for a number of labels; its score, its curve and the verdict on what was fine-tuned."""
    problem, test = context.problem, context.data.test

    def side(predictions: list[Predictions]) -> verdict.Side:
        each = [problem.per_sample_scores(x, test) for x in predictions]
        return verdict.Side([problem.score(x, test) for x in predictions], each)

    curves = [curve(context, trial, allowed) for trial in trials(context.cfg, "scratch", labels)[:repeats]]
    best = [max(points, key=lambda point: point.val_score) for points in curves]
    columns = dict(zip(allowed.points, zip(*curves, strict=True), strict=True))
    sides = {steps: side([point.predictions for point in column]) for steps, column in columns.items()}
    chosen = side([point.predictions for point in best])
    points = {steps * allowed.step: side.values for steps, side in sides.items()}
    about = verdict.of_run(side(tuned), chosen, sides[allowed.short], points, allowed.compute)
    return {
        "score": significance.spread(chosen.values),
        "curve": [
            {
                "steps": steps,
                "flops": steps * allowed.step,
                "score": significance.spread(sides[steps].values),
                "val_scores": [point.val_score for point in column],
            }
            for steps, column in columns.items()
        ],
        "verdict": {**about, "chosen_steps": [point.steps for point in best]},
    }


@dataclass(frozen=True)
class Point:
    """What a training from scratch reached with so many steps: predictions for the test split, and the score on the validation
    split."""

    steps: int
    predictions: Predictions
    val_score: float


def curve(context: Context, trial: Trial, allowed: Allowance) -> list[Point]:
    """Trains the trial from scratch: its points at those of `allowed`. What an earlier attempt has saved is not trained again."""
    split = chosen_labels(context, trial)
    loop = finetune_settings(context.cfg, trial, len(split))
    warm = min(round(loop.warmup * allowed.short), stable(allowed.points[0]))
    points = []
    for steps in allowed.points:
        begin, name = stable(steps), f"{trial.name}-{steps}"

        def train(steps: int = steps, begin: int = begin, name: str = name) -> tuple[Model, dict[str, Any]]:
            with context.run.clock(f"baseline/{trial.name}"):
                _, trunk = fit(context, trial, loop, split, trial.name, begin, decaying(loop.lr, warm, begin, begin))
                model, _ = fit(context, trial, loop, split, name, steps, decaying(loop.lr, warm, begin, steps), trunk)
                context.recompute_statistics(model.encoder, split)
                return model, {"val_score": validation_score(context, model)}

        predictions, state = saved_predictions(context, name, context.data.test, train)
        part_files.discard(context.state_file(f"baseline/{name}"))
        score = state.get("val_score")
        if type(score) is not float or not 0 <= score <= 1:
            raise UserError(f"checkpoints/logits/{name}.safetensors: its header is not what ptmrun writes there; refused")
        points.append(Point(steps, predictions, score))
    return points


def fit(
    context: Context,
    trial: Trial,
    loop: Any,
    split: Any,
    name: str,
    steps: int,
    rate: Callable[[int], float],
    start: Path | None = None,
) -> tuple[Model, Path]:
    """Trains the trial's random weights, or goes on from the state in `start`, up to so many steps; the model, and where its
    state stands."""
    check_stop(context.stop)
    model, _ = new_model(context, trial)
    if not start and probed(model, loop) and not context.state_file(f"baseline/{name}").exists():
        start_from_probe(context, model, split, trial.seed)
    tags = {"stage": "baseline", "trial": name}
    last = not start
    with planned(context, model, split, loop, steps, trial.seed, tags, trial, rate=rate, start=start, save_last=last) as (
        batches,
        plan,
    ):
        training.fit(model, batches, plan)
    return model, plan.file
