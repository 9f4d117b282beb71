"""How raw samples become the inputs of an exported graph, and its outputs answers, as JSON: recipe.json."""

import json
from pathlib import Path
from typing import Any

from ptmrun.data.images.processor import ImageProcessor
from ptmrun.exports.graph import Graph
from ptmrun.stages.networks import Networks
from ptmrun.storage.files import write_atomic


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
        about |= {"task": model.library_task, "classes": networks.classes}
    write_atomic(folder / "recipe.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def runs(networks: Networks, model: Any) -> bool:
    """Whether run_onnx.py can do it: classes of images, or of texts that are no pairs."""
    processor = networks.processor
    texts = processor.tokenizer is not None and not getattr(processor, "pairs", False)
    return (texts or isinstance(processor, ImageProcessor)) and model is not None and model.library_task in ("classes", "several")
