"""Retrieval both ways: the captions that fit an image, and the images that fit a caption, among those of a split, by the cosine
of their embeddings. Nothing is trained. What fits is what has the same pixels, caption or name (data/pairs/split.py)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.downstream.base import Features, Model, Predictions, Problem, ProblemSetup
from ptmrun.downstream.regressed import Regressed
from ptmrun.loss import Loss
from ptmrun.models.modes import eval_mode

DEPTHS = (1, 5, 10)
DEPTH = 10  # of the score
TOGETHER = 1024  # queries at a time
CHANCE = 256  # width of random embeddings


class Aligned(Model):
    """An encoder of images and texts, as it is."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: dict[str, Any]) -> tuple[Loss, dict[str, Loss]]:
        raise TypeError("nothing is trained")

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> Predictions:
        """images [N, D] and captions [M, D], of length 1."""
        images, captions = [], []
        with eval_mode(self):
            for pair in batches:
                images.append(F.normalize(self.encoder.image_embeddings(pair.images).float(), dim=-1).cpu())
                captions.append(F.normalize(self.encoder.text_embeddings(pair.tokens).float(), dim=-1).cpu())
        return {"images": torch.cat(images), "captions": torch.cat(captions)}


def build(encoder: Any, setup: ProblemSetup, options: Any) -> Aligned:
    return Aligned(encoder)


def subset(split: Any, classes: list[str], labels: int | None, seed: int) -> Tensor:
    """All."""
    return torch.arange(len(split))


def valid(predictions: Predictions, split: Any, classes: list[str]) -> bool:
    """Whether these can be embeddings of a split."""
    images, captions = (predictions.get(name, torch.empty(0)) for name in ("images", "captions"))
    widths = images.ndim == captions.ndim == 2 and images.shape[1] == captions.shape[1]
    return widths and (len(images), len(captions)) == (len(split), len(split.texts)) and images.is_floating_point()


def ranks(queries: Tensor, own: Tensor, others: Tensor, theirs: Tensor) -> Tensor:
    """Where the first of the `others` [n, D] that fits stands for each query [Q, D], from 1; others that fit too do not count,
    and of those that are as near half do. own [Q], theirs [n]: equal numbers fit."""
    found = []
    for some, numbers in zip(queries.split(TOGETHER), own.split(TOGETHER), strict=True):
        near, fits = some @ others.T, numbers[:, None] == theirs
        best = near.masked_fill(~fits, -torch.inf).amax(1, keepdim=True)
        before, level = ((mask & ~fits).sum(1) for mask in (near > best, near == best))
        found.append(1 + before + level / 2)
    return torch.cat(found)


def both_ranks(predictions: Predictions, split: Any) -> tuple[Tensor, Tensor]:
    """Of the first caption for each image [N], and of the first image for each caption [M]."""
    images, captions, same = predictions["images"], predictions["captions"], split.same
    of_captions = same[split.owners]
    return ranks(images, same, captions, of_captions), ranks(captions, of_captions, images, same)


def per_sample_scores(predictions: Predictions, split: Any) -> np.ndarray:
    """Of each image [N], whether a caption that fits is among the first DEPTH, and which share of its captions has an image that
    fits there: the mean of both."""
    to_text, to_image = (found <= DEPTH for found in both_ranks(predictions, split))
    counts = split.starts.diff()
    shares = torch.zeros(len(split)).index_add(0, split.owners, to_image.float()) / counts
    return ((to_text.float() + shares) / 2).numpy()


def score(predictions: Predictions, split: Any) -> float:
    return float(per_sample_scores(predictions, split).mean())


def baseline_predictions(kind: str, data: Any, train: Any, features: Features) -> Predictions:
    """chance: random embeddings; raw: pixels regressed to the TF-IDF of captions, which stand for the captions."""
    test = data.test
    if kind == "chance":
        generator = rng.generator(0, "retrieval/chance")
        sizes = {"images": len(test), "captions": len(test.texts)}
        found = {name: torch.randn(count, CHANCE, generator=generator) for name, count in sizes.items()}
    else:
        pixels, asked, _ = data.raw("raw", train)
        model = Regressed(pixels, train.captions())
        found = {
            name: torch.from_numpy(x)
            for name, x in (("images", model.images(asked)), ("captions", model.texts(test.texts.read())))
        }
    return {name: F.normalize(x, dim=-1) for name, x in found.items()}


def columns_of_predictions(predictions: Predictions, split: Any, classes: list[str]) -> dict[str, pa.Array]:
    """Of predictions.parquet: the first caption of each image and that which is nearest, where the first that fits stands, and
    where the image stands for its first caption."""
    to_text, to_image = both_ranks(predictions, split)
    nearest = torch.cat([(some @ predictions["captions"].T).argmax(1) for some in predictions["images"].split(TOGETHER)])
    texts = split.texts.read()
    first = split.starts[:-1]
    return {
        "caption": pa.array([texts[i] for i in first.tolist()], pa.string()),
        "prediction": pa.array([texts[i] for i in nearest.tolist()], pa.string()),
        "rank": pa.array(to_text.numpy()),
        "rank_of_image": pa.array(to_image[first].numpy()),
    }


def metrics(predictions: Predictions, split: Any, classes: list[str], bins: int) -> dict[str, Any]:
    """Recall among the first 1, 5 and 10, and the median rank, both ways; and where the split has groups the score of each."""
    result: dict[str, Any] = {"images": len(split), "captions": len(split.texts), "different": len(split.same.unique())}
    for way, found in zip(("image_to_text", "text_to_image"), both_ranks(predictions, split), strict=True):
        result |= {f"{way}_recall_at_{k}": float((found <= k).float().mean()) for k in DEPTHS}
        result[f"{way}_median_rank"] = float(found.median())
    if split.groups is not None:
        scores = per_sample_scores(predictions, split)
        result["score_by_group"] = {str(g): float(scores[split.groups == g].mean()) for g in np.unique(split.groups)}
    return result


PROBLEM = Problem(
    metric="recall_at_10",
    counted="pairs",
    build=build,
    subset=subset,
    valid=valid,
    score=score,
    per_sample_scores=per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=columns_of_predictions,
    metrics=metrics,
    untrained_baselines=("chance", "raw"),
    baseline_phrases={
        "tuned": "the pretrained model as it is",
        "chance": "random embeddings",
        "raw": "pixels regressed to the TF-IDF of captions",
    },
    whole_encoder=True,
    trains=False,
)
