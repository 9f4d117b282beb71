"""The methods that an evaluation compares, in the order in which they are shown."""

from typing import NamedTuple


class Method(NamedTuple):
    phrase: str  # in tables for people
    title: str  # in pictures
    column: str  # in tables of a sweep


BASELINES = {
    "chance": Method("always the most frequent class", "chance", "chance"),
    "raw": Method("logistic regression on the raw input (pixels, TF-IDF)", "raw input", "raw input"),
    "raw_knn": Method("nearest neighbours on the raw input", "raw + k-NN", "raw k-NN"),
    "raw_svm": Method("RBF-kernel SVM on the raw input", "raw + SVM", "raw SVM"),
    "raw_chars": Method("logistic regression on character n-grams (TF-IDF)", "characters", "characters"),
    "random_frozen": Method("logistic regression on features of the untrained model", "random + LR", "untrained"),
    "frozen": Method("logistic regression on features of the pretrained model", "pretrained + LR", "pretrained"),
    "scratch": Method("the same model from random weights, at equal compute", "from scratch", "scratch"),
}
METHODS = {**BASELINES, "tuned": Method("pretrained, then fine-tuned", "pretrained, tuned", "fine-tuned")}
UNPRETRAINED = Method("trained on the labels from random weights", "trained", "trained")  # `tuned`, where nothing was pretrained
AS_IT_IS = Method("the pretrained model as it is", "pretrained, as it is", "as it is")  # `tuned`, where nothing is trained
UNTRAINED = tuple(name for name in BASELINES if name != "scratch")  # without a training loop
FLOORS = tuple(name for name in UNTRAINED if name != "frozen")  # what owes nothing to pretraining
RAW = tuple(name for name in BASELINES if name.startswith("raw"))  # on inputs that the kind of data gives
