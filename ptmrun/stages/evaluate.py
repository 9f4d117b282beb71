"""The score on the test split, the floors beside it, and what they mean."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from ptmrun.errors import printable
from ptmrun.reports import attribution, figures, phrases, projection, significance
from ptmrun.runs.folder import console
from ptmrun.stages import probe
from ptmrun.stages.context import Context, check_stop, source, weights_hash
from ptmrun.stages.trials import chosen_labels, classifier, label_counts, predict, trials, tuned, weights_file
from ptmrun.storage import tensor_files

FLOORS = ("chance", "raw", "random_frozen", "frozen")


PROBES = (("probe_linear", "linear probe"), ("probe_knn", "k-NN"))


MOST_RAW = 10_000  # training samples for the classical baseline


MOST_GROUPS = 20  # in the summary; results.json and the report have all of them


SHOWN, MAPPED = 8, 2000  # test samples, evenly spaced, whose attribution is shown, and in the map of the features


MOST_TOKENS = 80  # of a text in a picture


def evaluate(context: Context) -> None:
    """Predicts with every fine-tuned model and every baseline; writes results.json, predictions.parquet and figures."""
    cfg, run, data, begun = context.cfg, context.run, context.data, time.perf_counter()
    wall = run.manifest.get("wall_s", {})
    problem = context.part("downstream")
    wanted = [b for b in phrases.METHODS if b in cfg.evaluate.baselines]
    pretrained = weights_hash(run) is not None
    sets: list[dict[str, Any]] = []
    inputs = Inputs(context)
    for labels in label_counts(cfg):
        found = {"tuned": [predict(context, t) for t in trials(cfg, "tuned", labels)]}
        for kind in ("scratch", "scratch_long"):
            if kind in wanted and pretrained:
                found[kind] = [predict(context, t) for t in trials(cfg, kind, labels)]
        for kind in [k for k in wanted if k in getattr(problem, "FLOORS", FLOORS)]:
            if kind != "frozen" or pretrained:
                found[kind] = floors(context, problem, kind, labels, inputs)
        values = {kind: [problem.score(x, data.test) for x in group] for kind, group in found.items()}
        entry: dict[str, Any] = {"labels_per_class": labels, "scores": {k: significance.spread(v) for k, v in values.items()}}
        if "scratch" in found:
            samples = [[problem.each(x, data.test) for x in found[kind]] for kind in ("tuned", "scratch")]
            entry["verdict"] = significance.verdict(values["tuned"], values["scratch"], *samples)
        entry["metrics"] = problem.metrics(found["tuned"][0], data.test, data.classes, cfg.evaluate.bins)
        sets.append(entry)
        check_stop(context.stop)
    headline = sets[-1]
    save_predictions(context, problem)
    if "confusion" in headline["metrics"]:
        figures.confusion(run, headline["metrics"]["confusion"], data.classes)
    panels = {phrases.labels(entry["labels_per_class"], problem.COUNTED): entry["scores"] for entry in sets}
    figures.scores(run, panels, problem.METRIC)
    draw_features(context, inputs)
    draw_attribution(context)
    lines = run.metrics()
    result = {
        "metric": problem.METRIC,
        "counted": problem.COUNTED,
        "words": getattr(problem, "WORDS", {}),
        "score": headline["scores"]["tuned"]["mean"],
        "score_sd": headline["scores"]["tuned"]["sd"],
        "labels_per_class": headline["labels_per_class"],
        "split": "test",
        "n_test": len(data.test),
        "seeds": cfg.finetune.seeds,
        "val_score": validation_score(context, problem, headline["labels_per_class"]),
        "metrics": headline["metrics"],
        "baselines": {k: v["mean"] for k, v in headline["scores"].items() if k != "tuned"},
        "verdict": headline.get("verdict"),
        "by_labels": [{k: v for k, v in s.items() if k != "metrics"} for s in sets],
        "pretrain": pretraining(lines),
        "weights_sha256": weights_hash(run),
        "wall_s": {**wall, "evaluate": round(wall.get("evaluate", 0.0) + time.perf_counter() - begun, 1)},
        "parameters": parameters(context, headline["labels_per_class"]),
        "ranks": ranks(context, headline["labels_per_class"]),
    }
    run.write_json("results.json", result)
    show(context, result, sets)


def parameters(context: Context, labels: int | None) -> dict[str, int]:
    """How many fine-tuning trained, and of how many."""
    trained, every = classifier(context, trials(context.cfg, "tuned", labels)[0])[1]
    return {"trained": trained, "all": every}


def ranks(context: Context, labels: int | None) -> dict[str, int]:
    """What the first repeat's AdaLoRA left of each module's rank; empty for other methods."""
    if context.cfg.finetune.name != "adalora":
        return {}
    from ptmrun.finetuning import lora  # peft takes seconds to import

    file = source(context.run, context.cfg, weights_file(trials(context.cfg, "tuned", labels)[0]))
    return lora.ranks(tensor_files.load(file)[0]) if file else {}


class Inputs:
    """The features that methods without a training loop see. Those of the test split are made once."""

    def __init__(self, context: Context):
        self.context = context
        self.encoders: dict[str, Any] = {}
        self.tests: dict[str, np.ndarray] = {}

    def of(self, kind: str, split: Any) -> np.ndarray:
        """[N, D]; kind: random_frozen or frozen."""
        if split is self.context.data.test and kind in self.tests:
            return self.tests[kind]
        if kind not in self.encoders:
            self.encoders[kind] = self.context.pretrained() if kind == "frozen" else self.untrained()
        found = self.context.features(self.encoders[kind], split)
        if split is self.context.data.test:
            self.tests[kind] = found
        return found

    def untrained(self) -> Any:
        encoder = self.context.encoder("scratch")
        self.context.refresh(encoder, self.context.data.train)
        return encoder


def floors(context: Context, problem: Any, kind: str, labels: int | None, inputs: Inputs) -> list[dict[str, Tensor]]:
    """Predictions for the test split of a baseline without a training loop, once a repeat where the labels differ."""
    found = []
    for trial in trials(context.cfg, "tuned", labels)[: 1 if kind == "chance" else None]:
        split = chosen_labels(context, trial).spaced(getattr(problem, "MOST_RAW", MOST_RAW))
        found.append(problem.floor(kind, context.data, split, inputs.of))
        check_stop(context.stop)
    return found


def pretraining(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last values of the pretraining stage, and what the probes said before it."""
    mine = [x for x in lines if x["stage"] == "pretrain"]
    if not mine:
        return None
    losses, probes = [x for x in mine if "loss" in x], [x for x in mine if "probe_knn" in x]
    result = {"loss": losses[-1]["loss"], "samples_per_s": losses[-1]["samples_per_s"], "steps": losses[-1]["step"]}
    for name in ("probe_knn", "probe_linear"):
        if probes:
            result |= {name: probes[-1][name], f"{name}_untrained": probes[0][name]}
    if probes:
        result |= {k: v for k, v in probes[-1].items() if k == "layer" or k.startswith(probe.LAYER)}
    return result


def validation_score(context: Context, problem: Any, labels: int | None) -> float:
    """The fine-tuned models' score on the held-out part of the training split: what a search may look at."""
    val = context.data.val
    return float(np.mean([problem.score(predict(context, t, "val"), val) for t in trials(context.cfg, "tuned", labels)]))


def save_predictions(context: Context, problem: Any) -> None:
    """predictions.parquet: one row for every number of labels, repeat and test sample; and what else the problem keeps, of the
    first repeat with most labels."""
    cfg, data = context.cfg, context.data
    count, tables = len(data.test), []
    for labels in label_counts(cfg):
        for repeat, trial in enumerate(trials(cfg, "tuned", labels)):
            found = predict(context, trial)
            columns = {
                "labels_per_class": pa.array([labels] * count, pa.int32()),
                "repeat": pa.array([repeat] * count, pa.int32()),
                "index": pa.array(np.arange(count, dtype=np.int32)),
                **problem.columns(found, data.test, data.classes),
                "score": pa.array(problem.each(found, data.test).astype(np.float32)),
            }
            if data.test.groups is not None:
                columns["group"] = pa.array(data.test.groups).dictionary_encode()
            tables.append(pa.table(columns))
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), buffer)
    context.run.write("predictions.parquet", buffer.getvalue().to_pybytes())
    if hasattr(problem, "files"):
        first = predict(context, trials(cfg, "tuned", label_counts(cfg)[-1])[0])
        for name, content in problem.files(first, data.test, cfg.downstream).items():
            context.run.write_json(name, content)


def draw_features(context: Context, inputs: Inputs) -> None:
    """Features of test images in two dimensions, of the untrained and of the pretrained encoder."""
    cfg, run, labels = context.cfg, context.run, context.data.test.labels
    if not single(context.data.test):
        return
    shown = torch.linspace(0, len(labels) - 1, min(MAPPED, len(labels))).long()
    if len(labels) < 3:
        return
    kinds = {"untrained": "random_frozen"} | ({"pretrained": "frozen"} if weights_hash(run) is not None else {})
    maps = {
        title: projection.plane(inputs.of(kind, context.data.test)[shown], cfg.evaluate.map, cfg.seed)
        for title, kind in kinds.items()
    }
    figures.embedding(run, maps, labels[shown].numpy(), context.data.classes)


def draw_attribution(context: Context) -> None:
    """What the first fine-tuned classifier for most labels goes by: Grad-CAM for encoders that have `cam_layers`, for those of
    texts what each token adds."""
    data = context.data
    if not single(data.test):
        return
    model = tuned(context, trials(context.cfg, "tuned", label_counts(context.cfg)[-1])[0])
    encoder, split = model.encoder, data.test.spaced(SHOWN)
    if not (hasattr(encoder, "cam_layers") or hasattr(encoder, "embeddings")):
        return
    inputs = context.inputs(next(split.all()))
    guess = model.predict([inputs])["logits"].argmax(1)
    pairs = zip(guess.tolist(), split.labels.tolist(), strict=True)
    titles = [data.classes[g] if g == t else f"{data.classes[g]}\n(is {data.classes[t]})" for g, t in pairs]
    try:
        if hasattr(encoder, "cam_layers"):
            maps = attribution.grad_cam(model, inputs, guess.to(context.device))
            figures.overlays(context.run, "grad_cam", context.inputs.back(inputs), maps, "Grad-CAM", titles)
        else:
            found = attribution.integrated_gradients(model, inputs, guess.to(context.device)).cpu()
            lengths = inputs.mask.sum(1).clamp(max=MOST_TOKENS).tolist()
            pieces = [data.tokenizer.pieces(row[:n]) for row, n in zip(inputs.ids.tolist(), lengths, strict=True)]
            titles = [title.replace("\n", " ") for title in titles]
            figures.marked_texts(context.run, titles, pieces, [row[:n] for row, n in zip(found, lengths, strict=True)])
    except ImportError:
        context.run.say("No picture of attributions: it needs captum; install it with: pip install 'ptmrun[attribution]'")


def single(split: Any) -> bool:
    """Whether each sample has one class."""
    return split.labels is not None and split.labels.ndim == 1


def show(context: Context, result: dict[str, Any], sets: list[dict[str, Any]]) -> None:
    """The summary table and the verdict, for a newcomer."""
    run, pretrained, counted = context.run, result["pretrain"], result["counted"]
    methods = phrases.methods(context.cfg.evaluate.longer, result["words"])
    if pretrained and "probe_linear" in pretrained:
        steps = [
            f"{name} {pretrained[f'{key}_untrained']:.3f} untrained -> {pretrained[key]:.3f} pretrained" for key, name in PROBES
        ]
        run.say(f"Features: {'; '.join(steps)} (held-out training {context.data.noun})")
    table = Table(title=f"{phrases.title(result['metric'])} on the test split (mean ± sd over repeats)", title_justify="left")
    table.add_column("")
    for entry in sets:
        table.add_column(phrases.labels(entry["labels_per_class"], counted), justify="right")
    best = [max(s["mean"] for s in entry["scores"].values()) for entry in sets]
    for kind in [k for k in methods if k in sets[0]["scores"]]:
        cells = []
        for entry, top in zip(sets, best, strict=True):
            score = entry["scores"][kind]
            text = phrases.score(score)
            cells.append(f"[bold]{text}[/bold]" if score["mean"] == top else text)
        table.add_row(methods[kind], *cells, style="cyan" if kind == "tuned" else None)
    show_table(run, table)
    if groups := sets[-1]["metrics"].get("groups"):
        show_groups(run, groups)
    for entry in sets:
        for line in phrases.conclusions(entry, methods, counted):
            run.say(line)


def show_groups(run: Any, groups: dict[str, Any]) -> None:
    """The scores of the worst MOST_GROUPS groups."""
    lines = phrases.group_lines(groups)
    hidden = "" if len(lines) <= MOST_GROUPS else f", the worst {MOST_GROUPS} of {len(lines)}"
    table = Table(title=f"By group (first repeat, most labels{hidden})", title_justify="left")
    for title in phrases.GROUP_TITLES:
        table.add_column(title, justify="left" if title == "group" else "right")
    for line in lines[:MOST_GROUPS]:
        table.add_row(*(Text(printable(cell)) for cell in line))
    show_table(run, table)


def show_table(run: Any, table: Table) -> None:
    """For the terminal and for log.txt."""
    console.print(table)
    with console.capture() as capture:
        console.print(table)
    run.note("\n" + capture.get())
