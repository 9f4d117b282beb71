"""What is held out of a split, for any kind of data."""

from typing import Any

import torch
from torch import Tensor

from ptmrun import rng
from ptmrun.errors import UserError


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


def units(split: Any) -> Tensor:
    """Which samples stay together when a split is cut, [N] numbers from 0: those of equal `group_ids`, where a split has them
    (and no classes); else each is alone."""
    together = split.group_ids
    return torch.arange(len(split)) if together is None else together.unique(return_inverse=True)[1]


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
    held[torch.cat(kinds(split, rng.permutation(seed, "split/folds", count)))[fold::folds]] = True
    return parted(split, held[unit])


def parted(split: Any, held: Tensor) -> tuple[Any, Any]:
    """(the rest, the samples that are held [N] bool), both in their order."""
    return split.subset(torch.nonzero(~held)[:, 0]), split.subset(torch.nonzero(held)[:, 0])


def kinds(split: Any, order: Tensor) -> list[Tensor]:
    """The samples in this order, class by class where each has one."""
    one = split.labels is not None and split.labels.ndim == 1
    return [order[split.labels[order] == c] for c in split.labels.unique()] if one else [order]


def some(split: Any, count: int, seed: int, purpose: str) -> Any:
    """So many of the samples, seeded; of every class its share, where each sample has one (by largest remainders)."""
    by_kind = kinds(split, rng.permutation(seed, f"split/{purpose}", len(split)))
    share = torch.tensor([len(members) for members in by_kind]) * count / len(split)
    each = share.long()
    each[(each - share).argsort(stable=True)[: count - int(each.sum())]] += 1
    return split.subset(torch.cat([members[:n] for members, n in zip(by_kind, each.tolist(), strict=True)]).sort().values)


def hold_out(split: Any, fraction: float, seed: int, purpose: str) -> tuple[Any, Any]:
    """(the rest, the held-out share), seeded; the same share of every class where each sample has one. What stays together is on
    one side."""
    unit = units(split)
    order = rng.permutation(seed, f"split/{purpose}", len(unit.unique()))
    held = torch.zeros(len(order), dtype=torch.bool)
    for members in kinds(split, order):
        held[members[: round(fraction * len(members))]] = True
    if not held.any() and len(order) > 1:
        held[order[0]] = True
    return parted(split, held[unit])
