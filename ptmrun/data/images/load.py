"""Images as the data of a run: a source becomes train, val and test splits. They never depend on the run's seed."""

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmrun import rng
from ptmrun.data import modality
from ptmrun.data.images import decode, levels
from ptmrun.data.images.augment import augment
from ptmrun.data.images.batches import Batches
from ptmrun.data.images.processor import ImageProcessor
from ptmrun.data.images.split import Split
from ptmrun.data.modality import Data, Picture
from ptmrun.data.sources import Part, Source
from ptmrun.data.splits import divide, no_classes, test_seen
from ptmrun.errors import UserError

MOST_COLUMNS = 3072  # values of an image, for the classical baseline


@dataclass(kw_only=True)
class Images(Data):
    """`mean` and `std` [C] are for images scaled to [0, 1], and `normalise` is what dataset.normalise came to."""

    noun = "images"
    raw_baselines = ("raw", "raw_knn", "raw_svm")

    channels: int
    size: int
    mean: Tensor
    std: Tensor
    normalise: str | list[float]
    scales: levels.Ranges
    classes_are_drawn: bool = False  # the model is to learn images of each class: model.classes
    unanswered: Split | None = None  # the training images alone, where a problem has answers of its own

    @property
    def corpus(self) -> Split:
        return self.unanswered or self.train

    @property
    def resolved_settings(self) -> dict[str, Any]:
        sizes = {"dataset__image_size": self.size, "dataset__normalise": self.normalise}
        return sizes | ({"model__classes": len(self.classes)} if self.classes_are_drawn else {})

    @property
    def facts(self) -> dict[str, Any]:
        deep = {"levels": self.scales} if self.scales else {}
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), **deep, **self.train.facts}

    def __str__(self) -> str:
        channels = {1: "gray", 3: "colour"}.get(self.channels, f"{self.channels} channels")
        return f"{self.size}x{self.size} {channels}, {len(self.classes)} classes"

    def processor(self, device: torch.device) -> ImageProcessor:
        return ImageProcessor(self.mean, self.std, device, self.size, self.scales or None)

    def batches(self, model: Any, split: Split, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Any) -> Batches:
        """With `views` of each image, mixed with the `alphas` of MixUp and CutMix, or plain, as the model wants them."""
        parts = min(loop.accumulate, size)
        augment = cfg.dataset.augment
        return Batches(split, inputs, augment, loop.augment, size, parts, seed, purpose, model.views, model.alphas)

    def without_augmentation(self, loop: Any) -> Any:
        return loop.model_copy(update={"augment": 0.0})

    @functools.cached_property
    def test_pixels(self) -> np.ndarray:
        return pixels(self.test)

    def raw(self, kind: str, train: Split) -> tuple[np.ndarray, np.ndarray, float]:
        return pixels(train), self.test_pixels, 1.0

    def derived_metrics(self, means: dict[str, float], split: Split) -> dict[str, float]:
        """Where the likelihood of pixels is known, that of a channel of one (a dimension)."""
        bits = means.get("bits_per_pixel")
        return {} if bits is None else {"bits_per_dimension": bits / self.channels}

    def misfit(self, cfg: Any, parent: Any, error: UserError) -> UserError:
        side, own = parent.dataset.image_size, cfg.dataset.image_size
        hint = f"; dataset.image_size={side} gives images the side that it was made for" if side != own else ""
        return UserError(f"init={cfg.init}: its encoder does not fit images of {own}: {error}{hint}")

    def adapted(self, encoder: Any) -> list[str]:
        side = encoder.resize
        if side is None or side >= self.size:
            return []
        return [f"images are scaled down from {self.size} pixels a side to the model's {side} (model.resize)"]

    def pictures_of_samples(self, cfg: Any, processor: Any) -> list[Picture]:
        """A few training images as they are and four times as training sees them."""
        strength = cfg.pretrain.augment if cfg.stage in ("all", "pretrain") else cfg.finetune.augment
        x = processor(self.train.some(10))
        sheet = {"original": processor.back(x)}
        for step in range(4):
            changed = augment(x, cfg.dataset.augment, strength, rng.BatchRandom(cfg.seed, step, 0, len(x), len(x)))
            sheet[f"augmented {step + 1}"] = processor.back(changed)
        return [Picture("rows", ("augmented", sheet))]

    def pictures_of_pretraining(
        self, cfg: Any, objective: Any, processor: Any, batch_of: Callable[[Any], dict[str, Any]], autocast: Callable[[], Any]
    ) -> list[Picture]:
        """The views of a few held-out images, what the objective makes of them, and what the encoder attends to."""
        back, batch = processor.back, batch_of(self.val.evenly_spaced(8))
        images, predicted = batch["inputs"], []
        if "views" in batch:
            views = {f"view {i + 1}": back(x) for i, x in enumerate(batch["views"])}
            predicted.append(Picture("rows", ("views", {"original": back(images), **views})))
        with autocast():
            shown = objective.pictures(batch)
        if shown:
            predicted.append(Picture("rows", ("reconstructions", {title: back(x.float()) for title, x in shown.items()})))
        if objective.encoder.attends:
            maps = objective.encoder.attention(images)
            predicted.append(Picture("overlays", ("attention", back(images), maps, "attention\nrollout")))
        return predicted


def of_run(request: modality.LoadRequest) -> Images:
    """The images of a run; see `load`."""
    cfg, fitting = request.cfg, partial(request.family.fitting, request.cfg.model) if request.cfg.init != "random" else int
    data = load(request.read, cfg.dataset, int(cfg.device.workers), request.progress, fitting)
    if request.problem.own_answers and cfg.stage != "pretrain":
        data.unanswered, splits = data.train, (data.train, data.val, data.test)
        data.train, data.val, data.test = request.problem.own_answers(splits, cfg.downstream, data.notes)
        data.no_classes = ""
    data.classes_are_drawn = draws_classes(cfg, data)
    return data


def draws_classes(cfg: Any, data: Images) -> bool:
    """Whether model.classes is for the data to say. Raises UserError where images of classes are to be learned and there are
    none, or more or fewer classes."""
    wanted, labels = getattr(cfg.model, "classes", None), data.corpus.labels
    if wanted is not None and cfg.stage in ("all", "pretrain"):
        if labels is None or labels.ndim > 1 or data.no_classes or len(data.classes) < 2:
            raise UserError(f"model.classes={wanted}: the images have no classes to learn; leave it out")
        if wanted not in ("auto", len(data.classes)):
            raise UserError(f"model.classes={wanted}: the data has {len(data.classes)}; expected auto, or as many")
    return wanted == "auto"


def load(
    read: Callable[[Any], Source],
    options: Any,
    workers: int,
    progress: Callable[[str, int, int], None],
    fitting: Callable[[int], int] = int,
) -> Images:
    """Reads the source, decodes it or not, and splits it. Raises UserError for data that cannot be used.

    With image_size=auto, `fitting` makes of the data's own side the one that is wanted.
    """
    source = read(options)
    found = decoded(source, options, workers, progress, fitting)
    ids = no_classes(found.sets, "images")
    whole, masked = found.sets["train"], having_masks(found.sets["train"])
    train, val, test, made = divide(found.sets | {"train": whole.subset(masked)}, options, "images", found.notes)
    if len(masked) < len(whole):
        train = with_others(train, whole, masked, options.limit)
        made |= {"train": train} if made else {}
    seen = test_seen(train, val, test, "images", found.notes)
    return images_of(source, found, options, train, val, test, made, test_seen=seen, no_classes=ids)


def having_masks(split: Split) -> Tensor:
    """Indices of the images that are divided into splits: those that have a mask, or all, where none has."""
    if split.masks is None:
        return torch.arange(len(split))
    there = torch.tensor([split.masks.has(row) for row in split.rows.tolist()])
    return torch.nonzero(there)[:, 0] if there.any() else torch.arange(len(split))


def with_others(train: Split, whole: Split, masked: Tensor, limit: int | None) -> Split:
    """A training split and, up to the limit, the images of the whole one that have no mask."""
    others = whole.rows[~torch.isin(torch.arange(len(whole)), masked)]
    others = others[: max(0, limit - len(train))] if limit else others
    return whole.subset(torch.nonzero(torch.isin(whole.rows, torch.cat([train.rows, others])))[:, 0])


class Decoded(NamedTuple):
    """The pictures of a source as splits, all of one size, and what was found on the way."""

    sets: dict[str, Split]
    size: int
    channels: int
    scales: levels.Ranges
    notes: list[str]
    unreadable: list[str]


def decoded(
    source: Source,
    options: Any,
    workers: int,
    progress: Callable[[str, int, int], None],
    fitting: Callable[[int], int] = int,
) -> Decoded:
    """See `load`. Raises UserError where too many pictures cannot be decoded."""
    notes, unreadable = list(source.notes), []
    size, channels, ranges = shape(source, options)
    scales = levels.chosen(ranges)
    notes += levels.notes(scales, ranges)
    if options.image_size == "auto" and (wanted := fitting(size)) != size:
        notes.append(f"images are scaled from {size}x{size} to {wanted}x{wanted}, the nearest that the model's patches divide")
        size = wanted
    sets: dict[str, Split] = {}
    for name, part in source.parts.items():
        sets[name], bad = as_split(part, f"{source.fingerprint}/{name}", size, channels, scales, options, workers, progress)
        unreadable += bad
    total = sum(len(s) for s in sets.values()) + len(unreadable)
    if len(unreadable) > options.max_unreadable * total:
        raise UserError(
            f"dataset.root={options.root}: {len(unreadable)} of {total} images cannot be decoded (the first: {unreadable[0]}), "
            f"more than dataset.max_unreadable={options.max_unreadable:g}"
        )
    if unreadable:
        notes.append(f"{len(unreadable)} of {total} images cannot be decoded and are skipped (listed in unreadable.txt)")
    return Decoded(sets, size, channels, scales, notes, unreadable)


def images_of(
    source: Source, found: Decoded, options: Any, train: Split, val: Split, test: Split, made: dict[str, Any], **more: Any
) -> Images:
    """The images of a run from its splits, those of them that were `made` here by name."""
    channels, scales = found.channels, found.scales
    normalise: Any = "data" if options.normalise == "auto" else options.normalise
    mean, std = moments(train) if normalise == "data" else given(normalise, channels)
    key = [
        found.size,
        channels,
        *(hashlib.sha256(s.rows.numpy().tobytes()).hexdigest() for s in (train, val, test)),
        *(hashlib.sha256(json.dumps(s.groups.tolist()).encode()).hexdigest() for s in (train, val, test) if s.groups is not None),
        *([json.dumps(scales, sort_keys=True)] if scales else []),
    ]
    fingerprint, older = (
        hashlib.sha256("/".join(map(str, [known, *key])).encode()).hexdigest()
        for known in (source.fingerprint, source.older_fingerprint)
    )
    return Images(
        train=train,
        val=val,
        test=test,
        classes=source.classes,
        channels=channels,
        size=found.size,
        mean=mean,
        std=std,
        normalise=normalise,
        scales=scales,
        fingerprint=fingerprint,
        older_fingerprint=older if source.older_fingerprint else "",
        faults=list(source.faults),
        notes=found.notes,
        created_splits={name: split.sample_names for name, split in made.items()},
        unreadable=found.unreadable,
        **more,
    )


def shape(source: Source, options: Any) -> tuple[int, int, levels.Ranges]:
    """(side, channels, values of pictures beyond 8 bits): the data's own where images are in memory and square, else from a
    survey of the pictures."""
    images, ranges = source.parts["train"].images, levels.Ranges()
    if isinstance(images, np.ndarray):
        side, channels = min(images.shape[1:3]), images.shape[3] if images.ndim == 4 else 1
    else:
        side, channels, ranges = decode.survey(images)
        others = [part.images for name, part in source.parts.items() if name != "train"]
        ranges = decode.other_ranges([x for x in others if not isinstance(x, np.ndarray)], ranges)
        side = source.side or min((32, 48, 64, 96, 128, 160, 192, 224), key=lambda s: abs(s - side))
    return (side if options.image_size == "auto" else options.image_size), channels, ranges


class Arrays:
    """Images in memory as pictures, for resizing."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def picture(self, index: int) -> Any:
        return decode.Image.fromarray(self.images[index])

    def label_of(self, index: int) -> str:
        return str(index)


def as_split(
    part: Part,
    fingerprint: str,
    size: int,
    channels: int,
    scales: levels.Ranges,
    options: Any,
    workers: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Split, list[str]]:
    """The split with its unreadable pictures left out, and their names."""
    labels = None if part.labels is None else torch.from_numpy(part.labels)
    together = None if part.together is None else torch.from_numpy(part.together)
    also: dict[str, Any] = {"together": together, "shown": part.shown, "masks": part.masks}
    if part.blocks is not None:
        also |= {"blocks": torch.tensor(part.blocks), "window": options.window}
    images = part.images
    if isinstance(images, np.ndarray) and images.shape[1:3] == (size, size):
        pixels = torch.from_numpy(np.ascontiguousarray(images.reshape(len(images), size, size, channels).transpose(0, 3, 1, 2)))
        contents = torch.tensor(decode.numbers(pixels, [True] * len(pixels)))
        return Split(pixels, None, torch.arange(len(images)), labels, groups=part.groups, contents=contents, **also), []
    pictures = Arrays(images) if isinstance(images, np.ndarray) else images
    decoder, rows = decode.Decoder(pictures, size, channels, scales), torch.arange(len(pictures))

    def decoding(done: int) -> None:
        progress("decoding", done, len(pictures))

    if len(pictures) * channels * size**2 <= options.cache_gb * 2**30:
        decoded, good = decode.decoded_once(decoder, fingerprint, workers, decoding)
        contents = torch.from_numpy(decode.identities(decoder, fingerprint, lambda: decode.numbers(decoded, good.tolist())))
        whole = Split(decoded, None, rows, labels, groups=part.groups, contents=contents, name_of=pictures.label_of, **also)
    else:
        contents = torch.from_numpy(decode.identities(decoder, fingerprint, lambda: decode.streamed(decoder, workers, decoding)))
        whole = Split(None, decoder, rows, labels, workers, part.groups, contents, pictures.label_of, **also)
    bad = [pictures.label_of(int(i)) for i in torch.nonzero(contents == 0)[:, 0]]
    return whole.subset(torch.nonzero(contents)[:, 0]), bad


def given(numbers: list[float], channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [C]; of gray images the means of those for three."""
    mean, std = torch.tensor(numbers[: len(numbers) // 2 * 2]).view(2, -1)
    if channels == 1 and len(numbers) == 6:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    if len(mean) != channels or len(numbers) % 2 or std.min() <= 0:
        raise UserError(
            f"dataset.normalise={numbers}: expected {2 * channels} numbers, the means of the channels and then their standard "
            "deviations, for pixels from 0 to 1"
        )
    return mean, std


def moments(train: Split, most: int = 5000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over evenly spaced training images, scaled to [0, 1]."""
    chosen = torch.linspace(0, len(train) - 1, min(most, len(train))).long()
    count, total, squares = 0, torch.zeros(0), torch.zeros(0)
    for images in train.batches(chosen.split(512)):
        x = images.double() / 255
        count += x[:, 0].numel()
        s, q = x.sum((0, 2, 3)), x.square().sum((0, 2, 3))
        total, squares = (total + s, squares + q) if total.numel() else (s, q)
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return mean.float(), std.float().clamp(min=1e-3)


def pixels(split: Split) -> np.ndarray:
    """Images as float32 rows in [0, 1]; large ones are averaged down to at most MOST_COLUMNS values."""
    rows = []
    for images in split.all():
        x = images.float() / 255
        while x[0].numel() > MOST_COLUMNS:
            x = F.avg_pool2d(x, 2)
        rows.append(x.flatten(1))
    return torch.cat(rows).numpy()
