"""Images with the boxes that are in them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun.batch import NO_BOX, Boxes
from ptmrun.data.images.split import Split
from ptmrun.data.sources import Scene, Scenes, Window
from ptmrun.errors import UserError

VISIBLE = 0.6  # share of a box that is to be seen in a window; of what is less, finding it is neither right nor wrong
Shown = tuple[np.ndarray, np.ndarray, np.ndarray]  # corners [n, 4], classes [n], ignored [n]


@dataclass(kw_only=True)
class BoxedSplit(Split):
    """Images (see Split) that are windows of scenes; each: of all rows of the source, its boxes in pixels of the image."""

    each: list[Shown]
    answered = True

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"categories": self.scenes.numbers, "tile": self.scenes.tile, "overlap": self.scenes.overlap}

    @property
    def scenes(self) -> Scenes:
        assert self.shown is not None
        return self.shown

    @property
    def windows(self) -> list[Window]:
        """Of each image, N."""
        return [self.scenes.windows[row] for row in self.rows.tolist()]

    def boxes(self, index: int) -> Shown:
        return self.each[int(self.rows[index])]

    def answers(self, indices: Tensor) -> Boxes:
        return padded([self.each[row] for row in self.rows[indices].tolist()])

    def moved(self, answers: Boxes, matrices: Tensor) -> Boxes:
        """The boxes around the moved corners, cut at the border."""
        side = self.side
        linear, shift = matrices[:, None, :, :2], matrices[:, None, :, 2]
        left, top, right, bottom = answers.corners.unbind(-1)
        points = torch.stack([torch.stack(p, -1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))], -2)
        inner = 2 * points / side - 1  # [B, n, 4, 2]
        outer = torch.linalg.solve(linear[:, :, None], (inner - shift[:, :, None])[..., None])[..., 0]
        whole = (outer + 1) * side / 2
        hull = torch.cat([whole.amin(2), whole.amax(2)], -1)
        inside = hull.clamp(0, side)
        seen = area(inside) / area(hull).clamp(min=1e-6)
        there = (answers.classes != NO_BOX) & ((inside[..., 2:] - inside[..., :2]) >= 1).all(-1)
        classes = torch.where(there, answers.classes, NO_BOX)
        return Boxes(inside, classes, answers.ignored | (seen < VISIBLE))


def area(corners: Any) -> Any:
    """[..., 4] -> [...]"""
    return (corners[..., 2] - corners[..., 0]) * (corners[..., 3] - corners[..., 1])


def padded(each: Iterable[Shown]) -> Boxes:
    """At least one place an image."""
    each = list(each)
    most = max(1, *(len(classes) for _, classes, _ in each))
    corners, classes = torch.zeros(len(each), most, 4), torch.full((len(each), most), NO_BOX)
    ignored = torch.zeros(len(each), most, dtype=torch.bool)
    for i, (own, kinds, passed) in enumerate(each):
        n = len(kinds)
        corners[i, :n], classes[i, :n] = torch.from_numpy(own), torch.from_numpy(kinds)
        ignored[i, :n] = torch.from_numpy(passed)
    return Boxes(corners, classes, ignored)


def in_window(scene: Scene, window: Window, side: int) -> Shown:
    """The boxes of a scene in a window that is scaled to a side. What is seen of less than VISIBLE is ignored."""
    offset = np.array([window.left, window.top] * 2, dtype=np.float32)
    whole = scene.corners - offset
    inside = whole.clip(0, window.side)
    scaled = inside * (side / window.side)
    there = ((scaled[:, 2:] - scaled[:, :2]) >= 1).all(1)
    seen = area(inside) / np.maximum(area(whole), 1e-6)
    ignored = scene.ignored | (seen < VISIBLE)
    return scaled[there].astype(np.float32), scene.classes[there], ignored[there]


def with_boxes(splits: tuple[Split, Split, Split], options: Any, notes: list[str]) -> tuple[BoxedSplit, BoxedSplit, BoxedSplit]:
    """Training, validation and test split. Raises UserError where the training images have no box."""
    made: dict[int, list[Shown]] = {}
    result = []
    for split in splits:
        shown = split.shown
        if shown is None:
            raise UserError("downstream=detection: the images have no boxes; there is: dataset=boxes, dataset=scenes")
        if id(shown) not in made:
            made[id(shown)] = [in_window(shown.scenes[w.scene], w, split.side) for w in shown.windows]
        result.append(BoxedSplit(**vars(split), each=made[id(shown)]))
    train, val, test = result
    count = sum(int((~train.boxes(i)[2]).sum()) for i in range(len(train)))
    if not count:
        raise UserError("downstream=detection: no training image has a box; expected at least one")
    for name, split in (("validation", val), ("test", test)):
        if not any((~split.boxes(i)[2]).any() for i in range(len(split))):
            notes.append(f"Warning: no {name} image has a box, so that its score is 0 whatever is found")
    return train, val, test
