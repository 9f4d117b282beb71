"""Images with captions as the data of a run: decoded and tokenized once. Splits never depend on the run's seed."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ptmrun.config import specs
from ptmrun.data import modality
from ptmrun.data.images.load import Decoded, Images, decoded, images_of
from ptmrun.data.modality import Data, Picture
from ptmrun.data.pairs.batches import PairBatches
from ptmrun.data.pairs.processor import PairProcessor
from ptmrun.data.pairs.split import PairSplit, same_ids
from ptmrun.data.sources import PairSource, TextPart
from ptmrun.data.splits import divide, no_classes, units
from ptmrun.data.text import tokenizer, tokenizer_training
from ptmrun.data.text.load import fingerprint_of, refuse_unknown, told_cut
from ptmrun.data.text.processor import TextProcessor
from ptmrun.data.text.split import TextSplit, frames

LONGEST, STEP = 77, 8  # tokens of a caption at most (CLIP's), for model.length=auto, and what the length is rounded up to
WHOLE = 0.99  # of the captions, that it is to hold whole
SEARCHED, SHOWN, LISTED, NEAREST = 256, 10, 6, 8  # images, those in the matrix, captions in the list, images of each
CUT = 48  # characters of a caption in a picture
LARGE = 0.1  # of the images that stay on one side together: said


@dataclass(kw_only=True)
class Pairs(Data):
    """images: the same without captions."""

    noun = "images with captions"
    raw_baselines = Images.raw_baselines

    images: Images
    tokenizer: Any  # tokenizer.Tokenizer
    length: int

    @property
    def resolved_settings(self) -> dict[str, Any]:
        sizes = {"model__length": self.length, "model__vocabulary": self.tokenizer.vocabulary.size}
        return {**self.images.resolved_settings, **sizes}

    @property
    def facts(self) -> dict[str, Any]:
        return {**self.images.facts, "tokenizer": self.tokenizer.fingerprint, **self.train.facts}

    def __str__(self) -> str:
        captions, vocabulary = f"{len(self.train.texts):,} captions to train on", f"{self.tokenizer.vocabulary.size:,}"
        return f"{captions}, a vocabulary of {vocabulary}, {self.images}"

    def processor(self, device: torch.device) -> PairProcessor:
        return PairProcessor(self.images.processor(device), TextProcessor(self.tokenizer, self.length, device))

    def save_processor(self, folder: Path) -> None:
        self.tokenizer.limit(self.length)
        self.tokenizer.save(folder)

    def batches(
        self, model: Any, split: PairSplit, cfg: Any, loop: Any, size: int, seed: int, purpose: str, inputs: Any
    ) -> PairBatches:
        parts, augment = min(loop.accumulate, size), cfg.dataset.augment
        return PairBatches(split, inputs, augment, loop.augment, size, parts, seed, purpose, model.views, model.alphas)

    def captions(self, split: PairSplit) -> list[str]:
        """The first of each image."""
        return [own[0] for own in split.captions()]

    def words(self, split: PairSplit) -> list[set[str]]:
        return [set(re.findall(r"\w+", " ".join(own).casefold())) for own in split.captions()]

    def without_augmentation(self, loop: Any) -> Any:
        return self.images.without_augmentation(loop)

    def raw(self, kind: str, train: PairSplit) -> tuple[Any, Any, float]:
        """Of the images."""
        return self.images.raw(kind, train.images)

    def misfit(self, cfg: Any, parent: Any, error: Any) -> Any:
        return self.images.misfit(cfg, parent, error)

    def pictures_of_samples(self, cfg: Any, processor: Any) -> list[Picture]:
        return self.images.pictures_of_samples(cfg, processor.image)

    def pictures_of_pretraining(
        self, cfg: Any, objective: Any, processor: Any, batch_of: Callable[[Any], dict[str, Any]], autocast: Callable[[], Any]
    ) -> list[Picture]:
        """What the objective makes of a few held-out images, what the encoder attends to in them, and where it has embeddings of
        both which images are near to which captions."""
        batch, back, encoder = batch_of(self.val.evenly_spaced(8)), processor.image.back, objective.encoder
        with autocast():
            shown = objective.pictures(batch)
        pictures = [Picture("rows", ("reconstructions", {title: back(x.float()) for title, x in shown.items()}))] if shown else []
        if encoder.attends:
            maps = encoder.attention(batch["inputs"])
            pictures.append(Picture("overlays", ("attention", back(batch["inputs"].images), maps, "attention\nrollout")))
        if encoder.aligns:
            with autocast():
                pictures += self.pictures_of_likeness(encoder, processor)
        return pictures

    @torch.no_grad()
    def pictures_of_likeness(self, encoder: Any, processor: PairProcessor) -> list[Picture]:
        """How near the captions of a few different held-out images are to these, and the images nearest to some of them."""
        split = self.val.evenly_spaced(SEARCHED)
        different = torch.from_numpy(np.sort(np.unique(split.same.numpy(), return_index=True)[1]))
        different = different[torch.linspace(0, len(different) - 1, min(SHOWN, len(different))).long()]
        captions = [own[0] for own in split.subset(different).captions()]
        short = [text if len(text) <= CUT else f"{text[: CUT - 1]}…" for text in captions]
        images = torch.cat([processor.image(some.images) for some in split.all()])
        found = F.normalize(torch.cat([encoder.image_embeddings(some) for some in images.split(64)]).float(), dim=-1)
        asked = F.normalize(encoder.text_embeddings(processor.texts(captions)).float(), dim=-1)
        near, seen = asked @ found.T, processor.image.back(images)
        rows = {text: seen[order[:NEAREST]] for text, order in zip(short, near.argsort(1, descending=True), strict=True)}
        matrix = Picture("similarity", (seen[different], short, near[:, different]))
        return [matrix, Picture("rows", ("retrieved", dict(list(rows.items())[:LISTED])))]


def of_run(request: modality.LoadRequest) -> Pairs:
    """Reads, decodes, splits and tokenizes the pairs of a run. Raises UserError for data that cannot be used."""
    cfg, options, family = request.cfg, request.cfg.dataset, request.family
    source: PairSource = request.read(options)
    fitting = partial(family.fitting, cfg.model) if cfg.init != "random" or family.parts(cfg.model) else int
    found = decoded(source.images, options, int(cfg.device.workers), request.progress, fitting)
    notes, unlabelled = found.notes, "labels" not in specs.spec("downstream", cfg.downstream.name).needs
    sets = as_splits(source, found, unlabelled)
    told_large(sets, notes)
    ids = no_classes(sets, "images")
    train, val, test, made = divide(sets, options, Pairs.noun, notes)
    seen = told_seen(train, val, test, notes)
    own = chosen_tokenizer(cfg, family, train, request.folder, notes, request.progress)
    length = cfg.model.length
    if length == "auto":
        counts = own.flat(train.texts.read())[1] + own.single.extra
        wanted, known = min(LONGEST, STEP * -(-int(np.quantile(counts, WHOLE)) // STEP)), request.longest or LONGEST
        length, why = min(wanted, known), ", and the weights know places of no more" if known < wanted else ""
        notes.append(f"model.length={length}: holds {(counts <= length).mean():.1%} of the captions that are trained on{why}")
    texts = train.texts.texts  # of all splits
    encoded = frames(texts, None, own, length)
    train, val, test = (
        replace(x, texts=replace(x.texts, ids=encoded[0], types=encoded[1], pad=own.vocabulary.pad)) for x in (train, val, test)
    )
    notes += told_cut(train.texts, own, length)
    pictures = {name: split.images for name, split in made.items()}
    images = images_of(source.images, found, options, train.images, val.images, test.images, pictures)
    marks = [images.fingerprint, own.fingerprint, length, *(fingerprint_of(x.captions()) for x in (train, val, test))]
    return Pairs(
        train=train,
        val=val,
        test=test,
        val_corpus=val,
        images=images,
        classes=source.images.classes,
        tokenizer=own,
        length=length,
        fingerprint=fingerprint_of(marks),
        notes=notes,
        test_seen=seen,
        no_classes="" if unlabelled else ids,
        created_splits=images.created_splits,
        unreadable=found.unreadable,
    )


def as_splits(source: PairSource, found: Decoded, answered: bool) -> dict[str, PairSplit]:
    """The splits of a source, their texts not tokenized yet; all splits have one list of texts."""
    captions = {name: [source.captions[name][row] for row in split.rows.tolist()] for name, split in found.sets.items()}
    together = source.together and {
        name: [source.together[name][row] for row in split.rows.tolist()] for name, split in found.sets.items()
    }
    contents = [split.contents for split in found.sets.values()]
    same = same_ids(
        torch.cat([x for x in contents if x is not None]),
        list(chain(*captions.values())),
        list(chain(*together.values())) if together else None,
    )
    texts = [text for each in captions.values() for own in each for text in own]
    sets, begin, first = {}, 0, 0
    for name, split in found.sets.items():
        counts = torch.tensor([len(own) for own in captions[name]], dtype=torch.int64)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        rows = first + torch.arange(int(starts[-1]))
        sets[name] = PairSplit(split, TextSplit([], [], texts, 0, rows, None), starts, same[begin : begin + len(split)], answered)
        begin, first = begin + len(split), first + len(rows)
    return sets


def told_large(sets: dict[str, PairSplit], notes: list[str]) -> None:
    """Warns where captions that many images share tie most of them together."""
    same = torch.cat([split.same for split in sets.values()])
    counts = same.unique(return_counts=True)[1]
    if (most := int(counts.max())) > max(LARGE * len(same), 2):
        notes.append(
            f"Warning: {most:,} of {len(same):,} images have captions or pixels in common, directly or through others: they stay "
            "on one side of a split, and are no mistakes for one another"
        )


def told_seen(train: PairSplit, val: PairSplit, test: PairSplit, notes: list[str]) -> int:
    """How many test images have the pixels, a caption or the name of one that is trained on; says so in `notes`."""
    count = int(torch.isin(test.same, torch.cat([train.same, val.same])).sum())
    if count:
        notes.append(
            f"Warning: {count:,} of {len(test):,} test images have the pixels, a caption or the name of one that is trained on"
        )
    if units(test).unique().numel() < len(test):
        notes.append(f"the {len(test):,} test images are {len(units(test).unique()):,} different things")
    return count


def chosen_tokenizer(cfg: Any, family: Any, train: PairSplit, folder: Path | None, notes: list[str], progress: Any) -> Any:
    """The one that a run has saved, or as model.tokenizer says, trained on the captions of the training split."""
    if folder:
        return tokenizer.of_run(folder, family.framing)
    texts = train.texts.read()
    size = sum(len(text.encode(errors="replace")) for text in texts)
    part = TextPart(functools.partial(each, texts), len(texts), size, fingerprint_of(texts))
    own = tokenizer_training.choose(cfg.model, family.tokenizer, family.framing, part, notes, progress)
    some = train.texts.evenly_spaced(tokenizer_training.SAMPLE).read()
    refuse_unknown(own, some, "captions", cfg.model.tokenizer, notes)
    return own


def each(texts: list[str]) -> Iterator[str]:
    return iter(texts)
