"""How raw samples become the inputs of an exported graph, and its outputs answers, as JSON: recipe.json."""

import json
from pathlib import Path
from typing import Any

from ptmrun.data.images.processor import ImageProcessor
from ptmrun.exports.graph import Graph
from ptmrun.stages.networks import Networks
from ptmrun.storage.files import write_atomic

SCRIPTS = {"classes": "run_onnx.py", "several": "run_onnx.py", "boxes": "run_boxes.py", "masks": "run_masks.py"}


def write(networks: Networks, model: Any, graph: Graph, folder: Path) -> None:
    """Writes recipe.json, and of texts tokenizer.json."""
    processor, about = networks.processor, dict[str, Any](inputs=graph.names, output=graph.result)
    if isinstance(processor, ImageProcessor):
        mean, std = processor.preprocessing
        about |= {"side": processor.size, "channels": len(mean), "mean": mean, "std": std}
    if processor.tokenizer:
        about |= {"length": processor.tokenizer.fast.model_max_length, "pad": processor.tokenizer.vocabulary.pad}
        processor.tokenizer.save(folder)
    if model is not None:
        about |= {"task": model.library_task or model.graph_task, "classes": networks.classes}
        about |= model.recipe(networks.problem_setup) if model.graph_task else {}
    write_atomic(folder / "recipe.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def script(networks: Networks, model: Any) -> Path | None:
    """What makes answers of model.onnx: for classes of images, or of texts that are no pairs, for boxes and for masks."""
    processor = networks.processor
    texts = processor.tokenizer is not None and not getattr(processor, "pairs", False)
    if model is None or not (texts or isinstance(processor, ImageProcessor)):
        return None
    name = SCRIPTS.get(model.library_task or model.graph_task)
    return Path(__file__).with_name(name) if name else None
