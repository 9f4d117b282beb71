"""What is drawn of a run: attention, reconstructions, features, attributions."""

from typing import Any

import torch

from ptmrun.data.modality import Picture
from ptmrun.models.modes import eval_mode
from ptmrun.objectives.base import Objective
from ptmrun.reports import attribution, figures, projection
from ptmrun.reports.curves import LAYER
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import weights_hash
from ptmrun.stages.baselines import FeatureCache
from ptmrun.stages.context import Context, batches_of
from ptmrun.stages.trials import best_trial, load_finetuned, predict

SHOWN, MAPPED = 8, 2000  # test samples, evenly spaced, whose attribution is shown, and in the map of the features
MOST_TOKENS = 80  # of a text in a picture


def draw(run: Run, pictures: list[Picture]) -> None:
    """What a kind of data gives to be drawn."""
    for picture in pictures:
        figures.DRAWERS[picture.drawer](run, *picture.parts)


def draw_pretraining(context: Context, objective: Objective) -> None:
    """What the kind of data shows of an objective, and the layers' probes."""
    figures.layers(context.run, LAYER)

    def batch_of(split: Any) -> dict[str, Any]:
        loop = context.cfg.pretrain.model_copy(update={"batch_size": len(split), "accumulate": 1})
        return next(batches_of(context, objective, split, loop, context.cfg.seed, "figures").iterate(0, 1))[0]

    with eval_mode(objective):
        pictures = context.data.pictures_of_pretraining(context.cfg, objective, context.processor, batch_of, context.autocast)
    draw(context.run, pictures)


def draw_features(context: Context, inputs: FeatureCache) -> None:
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
    figures.embedding(run, maps, labels[shown].numpy(), context.classes)


def draw_attribution(context: Context) -> None:
    """What the first fine-tuned classifier for most labels goes by: Grad-CAM for encoders that have `cam_layers`, for those of
    texts what each token adds."""
    data = context.data
    if not single(data.test):
        return
    model = load_finetuned(context, best_trial(context.cfg))
    encoder, split = model.encoder, data.test.evenly_spaced(SHOWN)
    if not encoder.cam_layers and encoder.embeddings is None:
        return
    inputs = context.processor(next(split.all()))
    guess = model.predict([inputs])["logits"].argmax(1)
    pairs = zip(guess.tolist(), split.labels.tolist(), strict=True)
    titles = [data.classes[g] if g == t else f"{data.classes[g]}\n(is {data.classes[t]})" for g, t in pairs]
    try:
        if encoder.cam_layers:
            maps = attribution.grad_cam(model, inputs, guess.to(context.device))
            figures.overlays(context.run, "grad_cam", context.processor.back(inputs), maps, "Grad-CAM", titles)
        else:
            attributions = attribution.integrated_gradients(model, inputs, guess.to(context.device)).cpu()
            lengths = inputs.mask.sum(1).clamp(max=MOST_TOKENS).tolist()
            pieces = [context.processor.tokenizer.pieces(row[:n]) for row, n in zip(inputs.ids.tolist(), lengths, strict=True)]
            titles = [title.replace("\n", " ") for title in titles]
            figures.marked_texts(context.run, titles, pieces, [row[:n] for row, n in zip(attributions, lengths, strict=True)])
    except ImportError:
        context.run.say("No picture of attributions: it needs captum; install it with: pip install 'ptmrun[attribution]'")


def draw_predictions(context: Context) -> None:
    """What the problem shows of the first repeat with most labels."""
    if context.problem.pictures:
        found, test = predict(context, best_trial(context.cfg)), context.data.test
        draw(context.run, context.problem.pictures(found, test, context.classes, context.processor))


def single(split: Any) -> bool:
    """Whether each sample has one class."""
    return split.labels is not None and split.labels.ndim == 1
