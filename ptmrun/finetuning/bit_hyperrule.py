"""BiT-HyperRule (Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3): settings of fine-tuning by size of data and images."""

from typing import Any

RULE = ((20_000, 500, 0.0), (500_000, 10_000, 0.1), (float("inf"), 20_000, 0.1))  # below so many images: steps, alpha of MixUp
SMALL, SIDES = 96, (128, 384)  # pixels a side up to which images are small; the side that the model sees of small and large ones
WARMUP, SHORT = 500, 0.2  # steps of warm-up, and their largest share (100 of 500, as in the authors' code)


def decide(options: Any, images: int, side: int) -> tuple[dict[str, Any], list[str]]:
    """({key: value} for what is auto in `finetune`, notes on why) for so many labelled images.

    The paper crops 128 of 160 or 384 of 448 pixels at random; here `dataset.augment` moves and scales images instead.
    """
    small = next(i for i, (below, _, _) in enumerate(RULE) if images < below)
    _, steps, alpha = RULE[small]
    size = f"{images:,} labelled images, {('fewer than 20,000', 'fewer than 500,000', '500,000 or more')[small]}"
    steps = options.steps if options.steps != "auto" else steps
    warmup = SHORT if steps is None else min(WARMUP / steps, SHORT)  # None: epochs were asked for
    rule = {
        "steps": (steps, size),
        "warmup": (warmup, f"{WARMUP} steps, at most a fifth"),
        "mixup": (alpha, size),
        "resolution": (SIDES[side > SMALL], f"images of {side}x{side}, {'above' if side > SMALL else 'up to'} {SMALL}"),
    }
    chosen = {k: v for k, v in rule.items() if getattr(options, k) == "auto"}
    notes = [f"finetune.{k}={value:g}: {why}" for k, (value, why) in chosen.items()]
    return {k: value for k, (value, _) in chosen.items()}, notes
