"""Images with captions of one split."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, tee
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ptmrun.batch import Pair, Tokens
from ptmrun.data import modality
from ptmrun.data.block_shuffle import BlockShuffle
from ptmrun.data.images.split import Split
from ptmrun.data.text.split import TextSplit
from ptmrun.storage.content import number


@dataclass
class PairSplit(modality.Split):
    """Images [N], each with one caption or several. texts: the captions of all, image by image; starts [N + 1]: where those of
    each image begin in it; same [N]: equal numbers are of images that one caption may fit: see `same_ids`. labels and groups
    are those of the images; answered: the pairs themselves are what is learned."""

    images: Split
    texts: TextSplit
    starts: Tensor
    same: Tensor
    answered: bool = True

    @property
    def labels(self) -> Tensor | None:  # type: ignore[override]
        return self.images.labels

    @property
    def groups(self) -> np.ndarray | None:  # type: ignore[override]
        return self.images.groups

    @property
    def facts(self) -> dict[str, Any]:  # type: ignore[override]
        return {"captions": len(self.texts)}

    @property
    def group_ids(self) -> Tensor:
        return self.same

    def part_seen(self, name: str, ids: Tensor) -> Tensor:
        """Of the images, or of any of the captions."""
        if name == "image":
            return torch.isin(self.images.contents, ids)  # type: ignore[arg-type]
        seen = torch.zeros(len(self), dtype=torch.bool)
        seen[self.owners[torch.isin(self.texts.group_ids, ids)]] = True
        return seen

    @property
    def sample_names(self) -> list[str]:
        return self.images.sample_names

    @property
    def block_shuffle(self) -> BlockShuffle | None:
        return self.images.block_shuffle

    @property
    def owners(self) -> Tensor:
        """The image of each caption, [len(texts)]."""
        return torch.arange(len(self)).repeat_interleave(self.starts.diff())

    def __len__(self) -> int:
        return len(self.images)

    def captions(self) -> list[list[str]]:
        """Of each image."""
        texts, bounds = self.texts.read(), self.starts.tolist()
        return [texts[a:b] for a, b in pairwise(bounds)]

    def subset(self, indices: Tensor) -> "PairSplit":
        counts = self.starts.diff()[indices]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        texts = torch.arange(int(starts[-1])) + (self.starts[:-1][indices] - starts[:-1]).repeat_interleave(counts)
        return replace(
            self, images=self.images.subset(indices), texts=self.texts.subset(texts), starts=starts, same=self.same[indices]
        )

    def tokens(self, indices: Tensor, drawn: Tensor | None = None) -> Tokens:
        """A caption of each of these images [b]: the first, or the one that `drawn` [b] chooses, uniform in [0, 1)."""
        first, last = self.starts[indices], self.starts[indices + 1]
        place = first if drawn is None else torch.minimum(first + (drawn * (last - first)).long(), last - 1)
        return next(self.texts.batches([place]))

    def all(self, size: int = 64) -> Iterator[Pair]:
        """The whole split in order, in batches of images, each with all its captions: more texts than images."""
        for indices in torch.arange(len(self)).split(size):
            whole = self.subset(indices)
            yield Pair(next(whole.images.all(size)), next(whole.texts.all(len(whole.texts))))

    def batches(self, index_lists: Iterable[Tensor]) -> Iterator[Pair]:
        """Images uint8 [B, C, S, S], each with its first caption."""
        lists, again = tee(index_lists)
        for indices, images in zip(lists, self.images.batches(again), strict=True):
            yield Pair(images, self.tokens(indices))


def same_ids(contents: Tensor, captions: list[list[str]], together: list[str] | None) -> Tensor:
    """Numbers [N] that images share which have equal pixels (contents [N]), a caption that differs in case and white space at
    most, or the same name in `together`; and so on, from one to the next."""
    keys: list[list[int]] = []
    for i, (content, texts) in enumerate(zip(contents.tolist(), captions, strict=True)):
        own = [content, *(number(" ".join(text.casefold().split()).encode(errors="replace")) for text in texts)]
        keys.append(own if together is None else [*own, number(f"together\0{together[i]}".encode(errors="replace"))])
    count = len(keys)
    values, columns = np.unique(np.array([key for own in keys for key in own], dtype=np.int64), return_inverse=True)
    rows = np.repeat(np.arange(count), [len(own) for own in keys])
    size = count + len(values)
    links = coo_array((np.ones(len(rows), dtype=bool), (rows, count + columns)), shape=(size, size))
    parts, part = connected_components(links, directed=False)
    smallest = np.full(parts, np.iinfo(np.int64).max)
    np.minimum.at(smallest, part[count:], values)
    return torch.from_numpy(smallest[part[:count]])
