"""What was found, as COCO's JSON has it, and drawn."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ptmrun.data.images import decode
from ptmrun.data.sources.imagefolder import Files
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.detection.merge import Found, of_scenes
from ptmrun.downstream.detection.split import BoxedSplit

COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#e377c2", "#8c564b")


def annotations(image: int, corners: Any, categories: list[int], scores: Any, first: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first + i,
            "image_id": image,
            "category_id": category,
            "bbox": [round(x, 2) for x in (left, top, right - left, bottom - top)],
            "area": round((right - left) * (bottom - top), 2),
            "iscrowd": 0,
            "score": round(score, 4),
        }
        for i, ((left, top, right, bottom), category, score) in enumerate(zip(corners, categories, scores, strict=True))
    ]


def coco(rows: list[dict[str, Any]], setup: ProblemSetup) -> dict[str, Any]:
    """Of the rows of `ptmrun predict`: images, annotations with scores, categories, with the data's own ids."""
    number = dict(zip(setup.classes, setup.facts["categories"], strict=True))
    images: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for row in rows:
        if "error" in row:
            continue
        images.append({"id": len(images) + 1, "file_name": row["input"], "width": row["width"], "height": row["height"]})
        kinds = [number[name] for name in row["classes"]]
        found += annotations(len(images), row["boxes"], kinds, row["scores"], len(found) + 1)
    categories = [{"id": n, "name": name} for name, n in number.items()]
    return {"images": images, "annotations": found, "categories": categories}


def files(predictions: dict[str, Tensor], split: BoxedSplit, options: Any) -> dict[str, Any]:
    """detections.json: what was found in the test scenes, as pycocotools' loadRes takes it; image_id is the place of a scene in
    test_scenes.json."""
    found: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    for scene, boxes, _ in of_scenes(predictions, split):
        names.append({"id": len(names) + 1, "file_name": scene.name, "width": scene.width, "height": scene.height})
        found += of_scene(len(names), boxes, split.scenes.numbers, len(found) + 1)
    return {"detections.json": found, "test_scenes.json": names}


def of_scene(image: int, boxes: Found, numbers: list[int], first: int) -> list[dict[str, Any]]:
    kinds = [numbers[c] for c in boxes.classes]
    return annotations(image, boxes.corners.astype(float).tolist(), kinds, boxes.scores.astype(float).tolist(), first)


def drawn(raw: Any, row: dict[str, Any]) -> bytes:
    """The picture with the boxes of its row, PNG."""
    if isinstance(raw, str | os.PathLike):
        raw = decode.picture(Files(Path(raw).parent, [Path(raw).name]), 0)
    image = (raw if isinstance(raw, Image.Image) else Image.fromarray(np.asarray(raw))).convert("RGB")
    pen, thick = ImageDraw.Draw(image), max(1, round(max(image.size) / 400))
    for box, name, score in zip(row["boxes"], row["classes"], row["scores"], strict=True):
        colour = COLOURS[sum(name.encode()) % len(COLOURS)]
        pen.rectangle(box, outline=colour, width=thick)
        pen.text((box[0] + thick + 1, box[1] + thick), f"{name} {score:.2f}", fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
