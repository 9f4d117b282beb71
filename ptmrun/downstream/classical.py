"""Classifiers of scikit-learn on fixed features: logistic regression, k nearest neighbours, support vector machines."""

import warnings
from typing import Any

import numpy as np

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of an L2 penalty, as scikit-learn's C: the smaller, the stronger
USUAL = 0.1  # where too few samples tell
ENOUGH, FOLDS = 1000, 3  # samples that choose among them, and parts that these are cut into


def logistic(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float | None = None, standardise: bool = True
) -> np.ndarray:
    """Log-probabilities [N, classes seen] of scikit-learn's logistic regression, on standardised columns or as they are; without
    `c` of the best strength."""
    from sklearn.linear_model import LogisticRegression

    mean, std = (train.mean(0), train.std(0) + 1e-6) if standardise else (0.0, 1.0)
    train = (train - mean) / std
    model = fitted(LogisticRegression(C=c or strength(train, labels), max_iter=300), train, labels)
    return log_probabilities(model, (test - mean) / std)


def classes(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, c: float | None = None, standardise: bool = True
) -> np.ndarray:
    """The likeliest of the classes [N] by `logistic`."""
    return np.unique(labels)[logistic(train, labels, test, c, standardise).argmax(1)]


def fitted(model: Any, x: np.ndarray, labels: np.ndarray) -> Any:
    """scikit-learn's model after its `max_iter` iterations: to compare features these are enough, converged or not."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)


def log_probabilities(model: Any, x: np.ndarray) -> np.ndarray:
    """Of the classes that a fitted model has seen, finite: [N, classes]."""
    return np.log(np.maximum(model.predict_proba(x), np.finfo(np.float64).tiny))


def strength(x: np.ndarray, labels: np.ndarray) -> float:
    """Of STRENGTHS, the one with which logistic regression has the lowest loss in cross-validation: standardised features
    [times * N, D] of samples that were seen once or several times over, and their labels [N]. USUAL where no two classes have
    FOLDS samples. Features of small models want a hundredth of the decay that those of large ones do."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    chosen = np.linspace(0, len(labels) - 1, min(len(labels), ENOUGH)).astype(int)
    classes, counts = np.unique(labels[chosen], return_counts=True)
    classes = classes[counts >= FOLDS]
    if len(classes) < 2:
        return USUAL
    chosen = chosen[np.isin(labels[chosen], classes)]
    x, labels = x.reshape(-1, len(labels), x.shape[1])[:, chosen], labels[chosen]
    places = np.searchsorted(classes, labels)
    x = np.nan_to_num(x, posinf=0.0, neginf=0.0)  # of a model that diverged, whose training will say so
    losses = np.zeros(len(STRENGTHS))
    for train, held in StratifiedKFold(FOLDS).split(chosen, labels):
        seen, answers = x[:, train].reshape(-1, x.shape[2]), np.tile(labels[train], len(x))
        model = LogisticRegression(max_iter=100, warm_start=True, tol=1e-3)
        for i, c in enumerate(STRENGTHS):
            fitted(model.set_params(C=c), seen, answers)
            losses[i] -= log_probabilities(model, x[0, held])[np.arange(len(held)), places[held]].sum()
    return STRENGTHS[int(losses.argmin())]


def neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray, k: int = 10) -> np.ndarray:
    """Classes [N] by a vote of the k nearest (Euclidean, standardised columns)."""
    from sklearn.neighbors import KNeighborsClassifier

    mean, std = train.mean(0), train.std(0) + 1e-6
    model = KNeighborsClassifier(min(k, len(train))).fit((train - mean) / std, labels)
    return model.predict((test - mean) / std)


def best_neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes [N] by a vote of the nearest (Euclidean, columns as they are), as many of them as cross-validation likes best."""
    from sklearn.neighbors import KNeighborsClassifier

    return chosen_by_folds(KNeighborsClassifier(1), {"n_neighbors": [1, 3, 5, 10]}, train, labels).predict(test)


def kernel_machine(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes [N] by a support vector machine with an RBF kernel (columns as they are); cross-validation chooses penalty and
    width."""
    from sklearn.svm import SVC

    width = 1 / (train.shape[1] * max(float(train.var()), 1e-12))  # scikit-learn's "scale"
    grid = {"C": [1.0, 10.0], "gamma": [0.3 * width, width]}
    return chosen_by_folds(SVC(C=10.0, gamma=width), grid, train, labels).predict(test)


def chosen_by_folds(model: Any, grid: dict[str, list], train: np.ndarray, labels: np.ndarray) -> Any:
    """A classifier of scikit-learn, fitted with the settings of `grid` that are most often right in FOLDS folds of at most
    ENOUGH samples; with its own where a class has fewer than FOLDS."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if np.unique(labels, return_counts=True)[1].min() < FOLDS:
        return model.fit(train, labels)
    some = np.linspace(0, len(labels) - 1, min(len(labels), ENOUGH)).astype(int)
    if np.unique(labels[some], return_counts=True)[1].min() >= FOLDS:
        search = GridSearchCV(model, grid, cv=StratifiedKFold(FOLDS), refit=False).fit(train[some], labels[some])
        model.set_params(**search.best_params_)
    return model.fit(train, labels)
