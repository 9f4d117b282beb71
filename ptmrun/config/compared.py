"""The methods that an evaluation compares, in the order in which they are shown."""

from typing import NamedTuple


class Method(NamedTuple):
    phrase: str  # in tables for people; {longer}: evaluate.longer
    title: str  # in pictures
    column: str  # in tables of a sweep
    trained: bool = False  # by the loop, from random weights


BASELINES = {
    "chance": Method("always the most frequent class", "chance", "chance"),
    "raw": Method("logistic regression on the raw input (pixels, TF-IDF)", "raw input", "raw input"),
    "random_frozen": Method("logistic regression on features of the untrained model", "random + LR", "untrained"),
    "frozen": Method("logistic regression on features of the pretrained model", "pretrained + LR", "pretrained"),
    "scratch": Method("the same model and fine-tuning from random weights", "scratch", "scratch", trained=True),
    "scratch_long": Method("the same, trained {longer} times as long", "scratch, longer", "scratch, longer", trained=True),
}
METHODS = {**BASELINES, "tuned": Method("pretrained, then fine-tuned", "pretrained, tuned", "fine-tuned")}
FROM_SCRATCH = tuple(name for name, method in BASELINES.items() if method.trained)
FLOORS = tuple(name for name, method in BASELINES.items() if not method.trained)  # without a training loop
