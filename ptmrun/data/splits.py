"""What is held out of a split, for any kind of data."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.errors import UserError

LEAST_LABELLED = 20  # samples, of which it can be told that their labels are no classes


def divide(sets: dict[str, Any], options: Any, noun: str, notes: list[str]) -> tuple[Any, Any, Any, dict[str, Any]]:
    """(train, val, test, those of them that were made here): what a source came without is held out, limits are kept. Says what
    it did in `notes`. Raises UserError when there is too little."""
    made = {}
    train, val, test = sets["train"], sets.get("val"), sets.get("test")
    total = sum(map(len, sets.values()))
    if options.folds:
        train, test = folded(train, options.folds, options.fold, options.split_seed)
        made["test"], val = test, None
        unused = sum(len(sets[name]) for name in ("val", "test") if name in sets)
        besides = f"; the {unused} {noun} of its own other splits are not used" if unused else ""
        notes.append(f"fold {options.fold} of {options.folds}: {len(test)} {noun} are the test split (splits.json){besides}")
    elif test is None and val is not None:
        test, val = val, None
        notes.append("there is no test split: the validation split takes its place")
    if test is None:
        train, test = hold_out(train, options.test_fraction, options.split_seed, "test")
        made["test"] = test
        notes.append(f"there is no test split: {len(test)} {noun} of {len(train) + len(test)} are held out (splits.json)")
    if options.limit and options.limit < len(train):
        train = some(train, options.limit, options.split_seed, "limit")
    if options.test_limit and options.test_limit < len(test):
        test = some(test, options.test_limit, options.split_seed, "test_limit")
    if val is None:
        train, val = hold_out(train, options.val_fraction, options.split_seed, "val")
        made["val"] = val
    if min(len(train), len(val), len(test)) == 0:
        parts = len(units(sets["train"]).unique())
        whole = f" in {parts} parts that stay whole" if parts < len(sets["train"]) else ""
        raise UserError(f"dataset={options.name}: {total} {noun}{whole} are too few to be split into train, val and test")
    if made:
        made["train"] = train
    return train, val, test, made


def no_classes(sets: dict[str, Any], noun: str) -> str:
    """Why the labels of a source cannot be meant as classes: most samples have one of their own. "" where they can."""
    labels = [split.labels for split in sets.values() if split.labels is not None]
    if not labels or labels[0].ndim > 1 or sum(map(len, labels)) < LEAST_LABELLED:
        return ""
    counts = torch.cat(labels).unique(return_counts=True)[1]
    alone, total = int((counts == 1).sum()), int(counts.sum())
    if 2 * alone <= total:
        return ""
    return (
        f"{alone:,} of {total:,} {noun} have a label that no other has, as ids and scores are, so there are no classes to learn"
    )


def test_seen(train: Any, val: Any, test: Any, noun: str, notes: list[str]) -> int:
    """How many test samples have an equal one in the training or validation split; says so in `notes`."""
    ids = [split.group_ids for split in (train, val, test)]
    if any(x is None for x in ids):
        return 0
    count = int(torch.isin(ids[2], torch.cat(ids[:2])).sum())
    if count:
        notes.append(f"Warning: {count:,} of {len(test):,} test {noun} have an equal one among those that are trained on")
    return count


def units(split: Any) -> Tensor:
    """Which samples stay together when a split is cut, [N] numbers from 0 in the order in which they come: those of equal
    `group_ids`, where a split has them; else each is alone."""
    together = split.group_ids
    if together is None:
        return torch.arange(len(split))
    _, first, inverse = np.unique(together.numpy(), return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[first.argsort()] = np.arange(len(first))
    return torch.from_numpy(place[inverse])


def folded(split: Any, folds: int, fold: int, seed: int) -> tuple[Any, Any]:
    """(the rest, one of the parts that cross-validation cuts it into), seeded; classes are dealt out evenly.

    Raises UserError when there is no such part.
    """
    if fold >= folds:
        raise UserError(f"dataset.fold={fold}: with dataset.folds={folds} the parts are 0 ... {folds - 1}")
    unit = units(split)
    count = len(unit.unique())
    if folds > count:
        what = "samples" if count == len(split) else "parts that stay whole"
        raise UserError(f"dataset.folds={folds}: the training split has {count} {what}; expected at most as many folds")
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.cat(kinds(split, rng.permutation(seed, "split/folds", count), unit))[fold::folds]] = True
    return parted(split, held[unit])


def parted(split: Any, held: Tensor) -> tuple[Any, Any]:
    """(the rest, the samples that are held [N] bool), both in their order."""
    return split.subset(torch.nonzero(~held)[:, 0]), split.subset(torch.nonzero(held)[:, 0])


def kinds(split: Any, order: Tensor, unit: Tensor) -> list[Tensor]:
    """The units in this order, class by class where each sample has one: the class of the first of a unit."""
    if split.labels is None or split.labels.ndim > 1:
        return [order]
    first = torch.from_numpy(np.unique(unit.numpy(), return_index=True)[1])
    labels = split.labels[first]
    return [order[labels[order] == c] for c in split.labels.unique() if (labels == c).any()]


def some(split: Any, count: int, seed: int, purpose: str) -> Any:
    """So many of the samples, seeded; of every class its share, where each sample has one (by largest remainders)."""
    by_kind = kinds(split, rng.permutation(seed, f"split/{purpose}", len(split)), torch.arange(len(split)))
    share = torch.tensor([len(members) for members in by_kind]) * count / len(split)
    each = share.long()
    each[(each - share).argsort(stable=True)[: count - int(each.sum())]] += 1
    return split.subset(torch.cat([members[:n] for members, n in zip(by_kind, each.tolist(), strict=True)]).sort().values)


def hold_out(split: Any, fraction: float, seed: int, purpose: str) -> tuple[Any, Any]:
    """(the rest, the held-out share), seeded; the same share of every class where each sample has one, and the asked-for share in
    all. What stays together is on one side."""
    unit = units(split)
    order = rng.permutation(seed, f"split/{purpose}", len(unit.unique()))
    held = torch.zeros(len(order), dtype=torch.bool)
    by_kind = kinds(split, order, unit)
    for members, count in zip(by_kind, shares(fraction, [len(members) for members in by_kind]), strict=True):
        held[members[:count]] = True
    return parted(split, held[unit])


def shares(fraction: float, sizes: list[int]) -> list[int]:
    """How many of each class are held out: its share, rounded; where these do not add up to the share of all, which is at least
    one of several, those classes have one more or less whose rounding left out or took most, in turn."""
    exact = fraction * np.array(sizes)
    counts = np.round(exact).astype(int)
    wanted = max(round(fraction * sum(sizes)), 1 if sum(sizes) > 1 else 0)
    lacking = wanted - int(counts.sum()) if abs(exact.sum() - counts.sum()) > 0.5 or not counts.any() else 0
    step = 1 if lacking > 0 else -1
    while lacking:
        room = (counts < sizes) if step > 0 else (counts > 0)
        gap = np.where(room, step * (exact - counts), -np.inf)
        chosen = np.argsort(-gap, kind="stable")[: min(abs(lacking), int(room.sum()))]
        counts[chosen] += step
        lacking -= step * len(chosen)
    return counts.tolist()
