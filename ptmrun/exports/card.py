"""The model card: README.md beside an export, with the hub's block of metadata."""

from pathlib import Path
from typing import Any

import yaml

from ptmrun import __version__
from ptmrun.errors import printable
from ptmrun.reports import phrases
from ptmrun.stages.predictor import Predictor
from ptmrun.storage.files import write_atomic

PIPELINES = {
    "tags": "token-classification",
    "answers": "question-answering",
    "boxes": "object-detection",
    "masks": "image-segmentation",
}
LOADING = {
    "onnx": "`python run.py FILE...`; where there is no run.py, recipe.json says what goes in and comes out",
    "pt2": '`torch.export.load("model.pt2").module()`; recipe.json says what goes in and comes out',
    "library": "config.json names the library and the class; transformers: `AutoConfig.from_pretrained(FOLDER).architectures`",
}


def write(predictor: Predictor, folder: Path, kind: str, what: str) -> None:
    networks, model = predictor.networks, predictor.model
    cfg, run = networks.cfg, networks.run
    task = model.library_task or model.graph_task if model else ""
    texts = networks.processor.tokenizer is not None
    pipeline = PIPELINES.get(task) or (("text" if texts else "image") + "-classification" if task else "feature-extraction")
    results = run.results() or {}
    entries = results.get("by_labels", [])
    metadata: dict[str, Any] = {
        "license": "unknown",  # the user's to fill in
        "library_name": {"library": "transformers", "onnx": "onnx", "pt2": "pytorch"}[kind],
        "pipeline_tag": pipeline,
        "tags": ["ptmrun", cfg.model.name, cfg.task.name],
        "datasets": [cfg.dataset.name],
    }
    if entries:
        metadata["model-index"] = [{"name": folder.name, "results": [indexed(results, entries[-1], pipeline, cfg.dataset.name)]}]
    lines = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {printable(folder.name)}",
        f"{what}: model={cfg.model.name}, pretrained with task={cfg.task.name}, finetune={cfg.finetune.name}, on the data set "
        f"{cfg.dataset.name}. Exported by ptmrun {__version__} from the run {run.folder.resolve().name}.",
        "## Load it",
        LOADING[kind] + ".",
    ]
    if networks.classes:
        lines += ["## Classes", ", ".join(printable(name) for name in networks.classes)]
    if entries:
        words, counted = phrases.methods(results), results["counted"]
        conclusions = [line for e in entries for line in phrases.conclusions(e, words, counted)]
        floors = [line for e in entries for line in phrases.floors_that_win(e, words, counted)]
        lines += ["## Scores on the test split", score_table(results, entries, words), "Mean ± standard deviation over repeats."]
        lines += ["\n".join(f"- {line}" for line in [*conclusions, *floors, *phrases.warnings(results)])]
    if groups := results.get("metrics", {}).get("groups"):
        lines += ["## Groups", table(phrases.GROUP_TITLES, phrases.group_lines(groups))]
    data = run.manifest.get("data", {})
    lines += [
        "## Limits",
        f"Measured on a test split of the same source as the training data (fingerprint {str(data.get('fingerprint'))[:12]}). "
        "Scores on other data, and for groups of people or things that were not told apart, are not known.",
        "## Licence",
        "To be filled in, here and in the block at the top: that of the training data matters too.",
    ]
    write_atomic(folder / "README.md", "\n\n".join(lines) + "\n")


def indexed(results: dict[str, Any], entry: dict[str, Any], pipeline: str, dataset: str) -> dict[str, Any]:
    """Of the hub's model-index."""
    score = {"type": results["metric"], "value": round(entry["scores"]["tuned"]["mean"], 4)}
    return {"task": {"type": pipeline}, "dataset": {"name": dataset, "type": dataset, "split": "test"}, "metrics": [score]}


def score_table(results: dict[str, Any], entries: list[dict[str, Any]], words: dict[str, str]) -> str:
    """One row a method, one column a number of labels."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["scores"]))
    titles = [phrases.title(results["metric"]), *(phrases.labels(e["labels_per_class"], results["counted"]) for e in entries)]
    body = [[words[name], *(phrases.score(e["scores"][name]) if name in e["scores"] else "" for e in entries)] for name in names]
    return table(titles, body)


def table(titles: list[str], body: list[list[str]]) -> str:
    rows = [titles, ["---"] * len(titles), *body]
    return "\n".join("| " + " | ".join(printable(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
