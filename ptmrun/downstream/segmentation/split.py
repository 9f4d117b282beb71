"""Images with the class of each pixel."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptmrun.data.images import masks, split
from ptmrun.data.images.masks import PixelClasses
from ptmrun.data.sources import IGNORED, Masks
from ptmrun.errors import UserError, printable

SHOWN = 3  # images in a note
LISTED = 12  # classes in a note


@dataclass(kw_only=True)
class MaskedSplit(split.Split):
    """Images with masks. truth: of all rows of the source, uint8 [n, S, S], IGNORED where a pixel is of no class; classes:
    names, in the order of their numbers; palette: a colour of each."""

    truth: Tensor
    classes: list[str]
    palette: list[list[int]]
    answered = True

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"palette": self.palette}

    @property
    def weighed(self) -> Tensor:
        known = self.truth[self.rows]
        return known[known != IGNORED].int()

    def answers(self, indices: Tensor) -> PixelClasses:
        return PixelClasses(self.truth[self.rows[indices]].long())

    def moved(self, answers: Any, matrices: Tensor) -> PixelClasses:
        return answers.moved(matrices)

    def right(self, size: int = 64) -> list[Tensor]:
        """The masks, in batches of at most `size`, uint8 [b, S, S]."""
        return [self.truth[rows] for rows in self.rows.split(size)]


def with_masks(splits: tuple[Any, Any, Any], options: Any, notes: list[str]) -> tuple[Any, Any, Any]:
    """Training, validation and test split, without images that have no mask. Raises UserError where nothing is left to learn."""
    known: dict[int, tuple[Tensor, Tensor]] = {}
    result = []
    for name, images in zip(("training", "validation", "test"), splits, strict=True):
        source: Masks | None = images.masks
        if source is None:
            raise UserError(f"downstream=segmentation: the images of the {name} split have no masks")
        if id(source) not in known:
            known[id(source)] = masks.decoded(source, images.side)
        truth, there = known[id(source)]
        blank = there[images.rows] & (truth[images.rows] == IGNORED).flatten(1).all(1)
        if blank.any():
            first = [images.sample_names[i] for i in torch.nonzero(blank)[:SHOWN, 0].tolist()]
            notes.append(f"{int(blank.sum()):,} {name} images have no pixel of any class and are left out: {', '.join(first)}")
        chosen = torch.nonzero(there[images.rows] & ~blank)[:, 0]
        if not len(chosen):
            raise UserError(f"downstream=segmentation: no image of the {name} split has a mask")
        alone = vars(images.subset(chosen)) | {"labels": None}
        result.append(MaskedSplit(**alone, truth=truth, classes=source.classes, palette=source.palette))
    train, val, test = result
    shares = counted(train)
    if (shares > 0).sum() < 2:
        only = train.classes[int(shares.argmax())]
        raise UserError(f"downstream=segmentation: needs at least two classes; all pixels of the training masks are {only}")
    order = shares.argsort(descending=True).tolist()
    each = [f"{printable(train.classes[c])} {percent(float(shares[c]))}" for c in order[:LISTED]]
    notes.append(f"pixels of the training masks: {', '.join(each)}" + (", ..." if len(order) > LISTED else ""))
    return train, val, test


def counted(images: MaskedSplit) -> Tensor:
    """Which share of the pixels each class has, float64 [K]."""
    counts = sum(torch.bincount(truth.flatten(), minlength=256) for truth in images.right())
    assert isinstance(counts, Tensor)
    return (counts[: len(images.classes)] / counts[:IGNORED].sum().clamp(min=1)).double()


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"
