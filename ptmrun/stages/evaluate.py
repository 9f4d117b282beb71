"""The score on the test split, the floors beside it, and what they mean."""

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ptmrun.config.compared import BASELINES, RAW
from ptmrun.downstream.base import Predictions, Problem
from ptmrun.reports import compute_table, figures, phrases, significance, verdict
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import source, weights_hash
from ptmrun.stages import compute, probe, scratch
from ptmrun.stages.baselines import FeatureCache, baseline_predictions
from ptmrun.stages.context import Context
from ptmrun.stages.pictures import draw_attribution, draw_features, draw_predictions
from ptmrun.stages.summary import show
from ptmrun.stages.trials import best_trial, label_counts, new_model, predict, trials, weights_file
from ptmrun.storage import tensor_files
from ptmrun.training.signals import check_stop


def evaluate(context: Context) -> None:
    """Predicts with every fine-tuned model and every baseline; writes results.json, predictions.parquet and figures."""
    cfg, run, data, begun = context.cfg, context.run, context.data, time.perf_counter()
    wall = run.manifest.get("wall_s", {})
    problem = context.problem
    wanted = [b for b in BASELINES if b in cfg.evaluate.baselines and b in problem.untrained_baselines]
    wanted = [b for b in wanted if b not in RAW or b in data.raw_baselines]
    pretrained = weights_hash(run) is not None
    sets: list[dict[str, Any]] = []
    inputs = FeatureCache(context)
    compared = pretrained and problem.trains and "scratch" in cfg.evaluate.baselines
    allowed = scratch.allowances(context) if compared else {}
    repeats = scratch.repeats(cfg, allowed)
    if allowed:
        run.say(scratch.described(cfg, allowed))
        scratch.train(context, allowed, repeats)
    for labels in label_counts(cfg):
        predictions = {"tuned": [predict(context, t) for t in trials(cfg, "tuned", labels)]}
        for kind in wanted:
            if kind != "frozen" or pretrained:
                predictions[kind] = baseline_predictions(context, problem, kind, labels, inputs)
        values = {kind: [problem.score(x, data.test) for x in group] for kind, group in predictions.items()}
        entry: dict[str, Any] = {"labels_per_class": labels, "scores": {k: significance.spread(v) for k, v in values.items()}}
        if allowed:
            more = scratch.compared(context, labels, predictions["tuned"], allowed[labels], repeats)
            entry["scores"]["scratch"] = more.pop("score")
            entry |= more
        entry["compute"] = compute_of(context, labels, allowed.get(labels)) if problem.trains else {}
        if not problem.trains and (floor := phrases.best_floor(entry)):
            entry["floor"] = against_floor(context, floor, predictions["tuned"], predictions[floor])
        entry["metrics"] = problem.metrics(predictions["tuned"][0], data.test, data.classes, cfg.evaluate.bins)
        sets.append(entry)
        check_stop(context.stop)
    headline = sets[-1]
    save_predictions(context, problem)
    if "confusion" in headline["metrics"]:
        figures.confusion(run, headline["metrics"]["confusion"], data.classes)
    panels = {phrases.labels(entry["labels_per_class"], problem.counted): entry["scores"] for entry in sets}
    figures.scores(run, panels, problem.metric, phrases.titles(pretrained, problem.trains))
    if allowed:
        figures.compute(run, sets, problem.metric, problem.counted)
        run.write("compute.csv", compute_table.csv_text(sets))
    draw_features(context, inputs)
    draw_attribution(context)
    draw_predictions(context)
    before = pretraining(run.metric_lines())
    result = {
        "metric": problem.metric,
        "counted": problem.counted,
        "words": {**data.baseline_phrases, **problem.baseline_phrases},
        "score": headline["scores"]["tuned"]["mean"],
        "score_sd": headline["scores"]["tuned"]["sd"],
        "labels_per_class": headline["labels_per_class"],
        "split": "test",
        "n_test": len(data.test),
        "test_seen": data.test_seen,
        "seeds": len(headline["scores"]["tuned"]["values"]),
        "val_score": mean_validation_score(context, problem, headline["labels_per_class"]),
        "metrics": headline["metrics"],
        "baselines": {k: v["mean"] for k, v in headline["scores"].items() if k != "tuned"},
        "verdict": headline.get("verdict"),
        "by_labels": [{k: v for k, v in s.items() if k != "metrics"} for s in sets],
        "pretrain": before and before | run.drawn(),
        "weights_sha256": weights_hash(run),
        "compute": run.manifest.get("compute", {}),
        "cpu_s": cpu_seconds(run),
        "wall_s": {**wall, "evaluate": round(wall.get("evaluate", 0.0) + time.perf_counter() - begun, 1)},
        "parameters": parameters(context, headline["labels_per_class"]),
        "ranks": ranks(context, headline["labels_per_class"]),
    }
    run.write_json("results.json", result)
    show(context, result, sets)


def compute_of(context: Context, labels: int | None, allowed: scratch.Allowance | None) -> dict[str, Any]:
    """What training with a number of labels took, a repeat."""
    tuned = trials(context.cfg, "tuned", labels)[0]
    fits = {"tuned": allowed.tuned if allowed else compute.fine_tuning(context, tuned)}
    if allowed:
        steps = allowed.steps
        fits["scratch"] = compute.Fit(steps * allowed.step, steps, steps * allowed.batch_size)
    return {kind: asdict(fit) for kind, fit in fits.items()}


def against_floor(context: Context, floor: str, tuned: list[Predictions], others: list[Predictions]) -> dict[str, Any]:
    """How far what is evaluated as it is stands above a floor, and the noise of that by the test samples."""
    a, b = ([context.problem.per_sample_scores(x, context.data.test).astype(float) for x in group] for group in (tuned, others))
    return {
        "name": floor,
        "gain": float(np.mean(a) - np.mean(b)),
        "noise": significance.of_samples(a, b) or verdict.NOISE_UNKNOWN,
    }


def cpu_seconds(run: Run) -> dict[str, float]:
    """Of what was trained in this run: pretrain, and a repeat of each kind with each number of labels (10-tuned), its mean."""
    each: dict[str, list[float]] = {}
    for name, seconds in run.manifest.get("cpu_s", {}).items():
        each.setdefault(name.split("/")[-1].rsplit("-", 1)[0], []).append(seconds)
    return {name: round(float(np.mean(values)), 1) for name, values in each.items()}


def parameters(context: Context, labels: int | None) -> dict[str, int]:
    """How many fine-tuning trained, and of how many."""
    trained, every = new_model(context, trials(context.cfg, "tuned", labels)[0])[1]
    trained = trained if context.problem.trains else 0
    return {"trained": trained, "all": every}


def ranks(context: Context, labels: int | None) -> dict[str, int]:
    """What the first repeat's AdaLoRA left of each module's rank; empty for other methods."""
    if context.cfg.finetune.name != "adalora":
        return {}
    from ptmrun.finetuning import lora  # peft takes seconds to import

    file = source(context.run, context.cfg, weights_file(trials(context.cfg, "tuned", labels)[0]))
    return lora.ranks(tensor_files.load(file)[0]) if file else {}


def pretraining(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The last values of the pretraining stage, and what the probes said before it."""
    last, probes = None, []
    for line in lines:
        if line["stage"] == "pretrain":
            last = line if "loss" in line else last
            probes += [line] if "probe_knn" in line else []
    if last is None:
        return None
    result = {"loss": last["loss"], "samples_per_s": last["samples_per_s"], "steps": last["step"]}
    for name in ("probe_knn", "probe_linear"):
        if probes:
            result |= {name: probes[-1][name], f"{name}_untrained": probes[0][name]}
    if probes:
        result |= {k: v for k, v in probes[-1].items() if k == "layer" or k.startswith(probe.LAYER)}
    return result


def mean_validation_score(context: Context, problem: Problem, labels: int | None) -> float:
    """The fine-tuned models' score on the held-out part of the training split: what a search may look at."""
    val = context.data.val
    return float(np.mean([problem.score(predict(context, t, "val"), val) for t in trials(context.cfg, "tuned", labels)]))


def save_predictions(context: Context, problem: Problem) -> None:
    """predictions.parquet: one row for every number of labels, repeat and test sample; and what else the problem keeps, of the
    first repeat with most labels."""
    cfg, data = context.cfg, context.data
    count, tables = len(data.test), []
    names = pa.array([name.encode("utf-8", "backslashreplace").decode() for name in data.test.sample_names], pa.string())
    for labels in label_counts(cfg):
        for repeat, trial in enumerate(trials(cfg, "tuned", labels)):
            predictions = predict(context, trial)
            columns = {
                "labels_per_class": pa.array([labels] * count, pa.int32()),
                "repeat": pa.array([repeat] * count, pa.int32()),
                "index": pa.array(np.arange(count, dtype=np.int32)),
                **({"sample": names} if len(names) else {}),
                **problem.columns_of_predictions(predictions, data.test, data.classes),
                "score": pa.array(problem.per_sample_scores(predictions, data.test).astype(np.float32)),
            }
            if data.test.groups is not None:
                columns["group"] = pa.array(data.test.groups).dictionary_encode()
            tables.append(pa.table(columns))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), buffer)
    context.run.write("predictions.parquet", buffer.getvalue().to_pybytes())
    first = predict(context, best_trial(cfg))
    for name, content in problem.files(first, data.test, cfg.downstream).items():
        context.run.write_json(name, content)
