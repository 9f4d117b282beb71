"""Zero-shot classification (Radford et al. 2021, section 3.1): the class whose name, put into templates, is nearest to the image.
Nothing is trained, and no label is seen."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun.downstream import classification
from ptmrun.downstream.base import Features, Predictions, Problem, ProblemSetup
from ptmrun.downstream.regressed import Regressed
from ptmrun.downstream.retrieval import Aligned, subset
from ptmrun.errors import UserError
from ptmrun.models.modes import eval_mode


class ZeroShot(Aligned):
    """prompts: of each class, its name in every template."""

    def __init__(self, encoder: Any, processor: Any, prompts: list[list[str]]):
        super().__init__(encoder)
        self.processor, self.prompts = processor, prompts

    @torch.no_grad()
    def class_embeddings(self) -> Tensor:
        """The mean of the prompts of each class, of length 1: [classes, D]."""
        texts = self.processor.texts([text for own in self.prompts for text in own])
        each = F.normalize(self.encoder.text_embeddings(texts).float(), dim=-1)
        return F.normalize(each.unflatten(0, (len(self.prompts), -1)).mean(1), dim=-1)

    @torch.no_grad()
    def predict(self, batches: Iterable[Any]) -> Predictions:
        """Logits of all samples, [N, classes]."""
        with eval_mode(self):
            classes, scale = self.class_embeddings(), self.encoder.scale.exp()
            images = (F.normalize(self.encoder.image_embeddings(pair.images).float(), dim=-1) for pair in batches)
            return {"logits": torch.cat([(scale * some @ classes.T).cpu() for some in images])}


def prompts(classes: list[str], templates: list[str]) -> list[list[str]]:
    """Raises UserError for a template without a place for the name."""
    if bare := [template for template in templates if "{}" not in template]:
        raise UserError(f"downstream.templates: {bare[0]}: expected {{}} where the name of the class stands")
    return [[template.replace("{}", name) for template in templates] for name in classes]


def build(encoder: Any, setup: ProblemSetup, options: Any) -> ZeroShot:
    return ZeroShot(encoder, setup.processor, prompts(setup.classes, setup.options.templates))


def baseline_predictions(kind: str, data: Any, train: Any, features: Features) -> Predictions:
    """raw: as of zero-shot, pixels regressed to the TF-IDF of captions, of the names of classes; the others see the labels."""
    if kind != "raw":
        return classification.baseline_predictions(kind, data, train, features)
    pixels, asked, _ = data.raw("raw", train)
    model = Regressed(pixels, train.captions())
    images, classes = (torch.from_numpy(x) for x in (model.images(asked), model.texts(data.classes)))
    return {"logits": F.normalize(images, dim=-1) @ F.normalize(classes, dim=-1).T}


PROBLEM = Problem(
    metric="accuracy",
    counted="labels per class",
    build=build,
    subset=subset,
    valid=classification.valid,
    score=classification.score,
    per_sample_scores=classification.per_sample_scores,
    baseline_predictions=baseline_predictions,
    columns_of_predictions=classification.columns_of_predictions,
    metrics=classification.metrics,
    answer_rows=classification.answer_rows,
    untrained_baselines=("chance", "raw", "frozen"),
    baseline_phrases={
        "tuned": "zero-shot: the class whose name is nearest",
        "raw": "pixels regressed to the TF-IDF of captions, the nearest name",
        "frozen": "logistic regression on features of the pretrained model, all labels seen",
    },
    whole_encoder=True,
    trains=False,
)
