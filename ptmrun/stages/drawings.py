"""What a model draws of held-out captions, and whether it is what they say: by a classifier of captions' words that real images
have trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.models.modes import eval_mode
from ptmrun.reports import figures
from ptmrun.stages.context import Context

TEMPERATURE, TOP_P, GUIDANCE = 1.0, 0.95, 2.0
DRAWN, SHOWN = 64, 10  # pictures, and of them in the figure
COMMON = (0.01, 0.8)  # shares of the training images, between which a word tells them apart
KNOWN = 0.9  # balanced accuracy on held-out real images, from which the classifier knows a word
STEPS, BATCH, LR = 300, 64, 3e-3  # of the classifier


@torch.no_grad()
def judge(context: Context, objective: Any, step: int) -> None:
    """Draws a picture for each of some test samples, of its caption or class where the model has learned such. Writes what the
    classifier says of them (words_right: of the words of their captions that it knows; all_right: nothing else either) beside
    what it says of the real images and of drawings for captions with other words, and how near the nearest training images are;
    and a picture."""
    encoder = objective.encoder
    if not (objective.draws and encoder.can_draw):
        return
    data, run, processor = context.data, context.run, context.processor
    split = data.test.evenly_spaced(DRAWN)
    inputs = processor(next(split.batches([torch.arange(len(split))])))
    noise = torch.stack(
        [torch.rand(encoder.draws, generator=rng.generator(context.cfg.seed, "drawn", i)) for i in range(len(split))]
    )
    text = split.labels.to(context.device) if encoder.classes else encoder.text_of(inputs)
    with eval_mode(encoder), context.autocast():
        drawn = encoder.draw(noise.to(context.device), text, TEMPERATURE, None, TOP_P, GUIDANCE).float()
    real = at_side(encoder.images_of(inputs), drawn.shape[-1])
    distances, images = nearest_training(context, encoder, torch.cat([drawn, real]))
    (distance, real_distance), nearest = distances.chunk(2), images[: len(drawn)]
    found: dict[str, float] = {
        "nearest": float(distance.mean()),
        "nearest_real": float(real_distance.mean()),
        "copies": int((distance < real_distance.min()).sum()),
    }
    words, asked = (words_of(context, encoder, some) for some in (data.train, split))
    if words:
        found |= agreement(context, encoder, words, asked, drawn, real)
    run.metric({"stage": "pretrain", "step": step, "split": "drawn", **found})
    run.say("  drawn: " + ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in found.items()))
    shown = {"drawn": drawn, "nearest\ntraining image": nearest, "test image": real}
    some = torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long()
    captions = data.captions(split.subset(some)) or [", ".join(asked[i]) for i in some.tolist()] if words else None
    figures.rows(run, "drawn", {title: processor.back(x[some]) for title, x in shown.items()}, captions)


def words_of(context: Context, encoder: Any, split: Any) -> list[set[str]]:
    """Of the captions of each sample, or the name of its class, where such are drawn; none where nothing is."""
    if not encoder.classes:
        return context.data.words(split)
    return [{context.data.classes[label]} for label in split.labels.tolist()]


def at_side(images: Tensor, side: int) -> Tensor:
    """[B, C, S, S] in the size of what is drawn, which may be smaller: [B, C, side, side]."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="bilinear", antialias=True)


def nearest_training(context: Context, encoder: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(root mean squared difference to the nearest training image [B], these images), of normalised values."""
    best, images = torch.full((len(pictures),), torch.inf), torch.zeros_like(pictures)
    for samples in context.data.train.all():
        some = at_side(encoder.images_of(context.processor(samples)), pictures.shape[-1])
        distance, place = torch.cdist(pictures.flatten(1), some.flatten(1)).cpu().min(1)
        nearer = distance < best
        best[nearer], images[nearer] = distance[nearer], some[place[nearer]]
    return best / pictures[0].numel() ** 0.5, images


def agreement(
    context: Context, encoder: Any, words: list[set[str]], wanted: list[set[str]], drawn: Tensor, real: Tensor
) -> dict[str, float]:
    """words: of the training images; wanted: of what is drawn."""
    data = context.data
    counts: dict[str, int] = {}
    for own in words:
        for word in own:
            counts[word] = counts.get(word, 0) + 1
    low, high = (share * len(words) for share in COMMON)
    vocabulary = sorted(word for word, count in counts.items() if low <= count <= high)
    if not vocabulary:
        return {}
    side = drawn.shape[-1]
    classifier = trained(context, encoder, table(words, vocabulary), side)
    seen = (at_side(encoder.images_of(context.processor(samples)), side) for samples in data.val.all())
    val = torch.cat([classifier(images).cpu() > 0 for images in seen])
    truth = table(words_of(context, encoder, data.val), vocabulary) > 0
    hits = (val & truth).sum(0) / truth.sum(0).clamp(min=1)
    rejected = (~val & ~truth).sum(0) / (~truth).sum(0).clamp(min=1)
    known = (hits + rejected) / 2 >= KNOWN
    truth = table(wanted, vocabulary)[:, known] > 0
    if not bool(truth.any()):
        return {}
    found: dict[str, float] = {"words_known": int(known.sum())}
    itself = torch.eye(len(truth), dtype=torch.bool)
    others = (truth[:, None] != truth).any(2)  # [B, B]: pictures whose captions have other words
    for name, images, pairs in (("", drawn, itself), ("_real", real, itself), ("_other_captions", drawn, others)):
        answers = (classifier(images).cpu() > 0)[:, known]
        caption, picture = pairs.nonzero().T
        if len(caption):
            found[f"words_right{name}"] = float((answers[picture] & truth[caption]).sum() / truth[caption].sum())
            found[f"all_right{name}"] = float((answers[picture] == truth[caption]).all(1).float().mean())
    return found


def table(words: list[set[str]], vocabulary: list[str]) -> Tensor:
    """Which sample has which word, 0 or 1: [N, words]."""
    return torch.tensor([[float(word in own) for word in vocabulary] for own in words])


@torch.enable_grad()
def trained(context: Context, encoder: Any, targets: Tensor, side: int) -> nn.Module:
    """A convolutional network that says of each word whether it is one of an image's, by the training images in so many pixels a
    side: targets [N, W]."""
    rng.seed_everything(0, "drawings/classifier")
    first = encoder.images_of(context.processor(next(context.data.train.evenly_spaced(1).all())))
    layers: list[nn.Module] = []
    for before, after in ((first.shape[1], 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, targets.shape[1]))
    net = net.to(context.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    count = len(targets)
    lists = [rng.permutation(0, "drawings/classifier", count, i)[:BATCH] for i in range(STEPS)]
    for rows, samples in zip(lists, context.data.train.batches(lists), strict=True):
        images = at_side(encoder.images_of(context.processor(samples)), side)
        F.binary_cross_entropy_with_logits(net(images), targets[rows].to(images.device)).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return net.eval()
