"""Fine-tuning and the baselines beside it: from which weights, on which rows, for how many steps, and that it trains at all."""

import copy
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, HandMade
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ptmrun import rng
from ptmrun.compose import compose
from ptmrun.config import parsing
from ptmrun.downstream import classical, multilabel
from ptmrun.downstream.classification import Classifier
from ptmrun.models import cnn
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import ENCODER, encoder_hash
from ptmrun.stages import baselines, compute, evaluate, scratch, trials
from ptmrun.stages.prepare import prepare
from ptmrun.stages.trials import Trial
from ptmrun.training.signals import Stop

SMALL = ["model=cnn", "task=simclr", "model.width=8", "model.hidden=16", "finetune.log_every=1", "seed=3"]
LABELS = 5
ALLOWED = scratch.Allowance(compute.Fit(20.0, 2, 100), 80.0, True, 10.0, 50)  # 2, 4 and 8 steps from scratch, and 1
SEEDS = [3000, 3001]  # of the two repeats of a run whose seed is 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The context of a run whose pretrained encoder is random weights of another seed."""
    cfg = compose([*TINY, *SMALL, f"outputs={tmp_path_factory.mktemp('runs')}"])
    context = prepare(Run.create(cfg, [], {"parents": []}), cfg, Stop())
    torch.manual_seed(99)
    encoder = cnn.FAMILY.build(context.cfg.model, context.processor.spec, "eager")
    encoder.save(context.run.path(ENCODER), *context.processor.preprocessing)
    context.run.update(weights_sha256=encoder_hash(context.run.path(ENCODER)))
    return context


@pytest.fixture
def context(prepared):
    """The same for one test, without what others trained."""
    for name in ("state", "finetuned", "logits"):
        shutil.rmtree(prepared.run.path("checkpoints", name), ignore_errors=True)
    prepared.run.path("metrics.jsonl").unlink(missing_ok=True)
    return copy.copy(prepared)


def with_settings(context, **changes):
    context.cfg = parsing.replace(context.cfg, **changes)
    return context


def initial(context, purpose, seed):
    """The weights that the family makes from (seed, purpose)."""
    rng.seed_everything(seed, purpose)
    return cnn.FAMILY.build(context.cfg.model, context.processor.spec, "eager").state_dict()


def pretrained(context):
    """What the fixture saved."""
    torch.manual_seed(99)
    return cnn.FAMILY.build(context.cfg.model, context.processor.spec, "eager").state_dict()


def rows_by_hand(context, seed):
    """The first rows of each class in the permutation of (seed, labels), as a set."""
    labels, found = context.data.train.labels.tolist(), []
    order = rng.permutation(seed, "labels", len(labels)).tolist()
    for c in range(10):
        found += [i for i in order if labels[i] == c][:LABELS]
    return found


def equal(a, b):
    return {name for name in a if torch.equal(a[name], b[name])}


def test_from_scratch_starts_from_the_random_weights_of_its_seed(context):
    models = [trials.new_model(context, Trial(LABELS, "scratch", seed))[0].encoder.state_dict() for seed in SEEDS]
    for seed, found in zip(SEEDS, models, strict=True):
        assert equal(found, initial(context, "scratch", seed)) == found.keys()
        matrices = {name for name, value in found.items() if value.ndim > 1}
        assert len(matrices) > 2
        assert not matrices & equal(found, pretrained(context)), "no weight of the pretrained encoder"
        assert not matrices & equal(found, initial(context, "encoder", 3)), "nor of what pretraining began with"
    assert not matrices & equal(*models), "each repeat has weights of its own"


def test_fine_tuning_starts_from_the_pretrained_weights(context):
    for seed in SEEDS:
        found = trials.new_model(context, Trial(LABELS, "tuned", seed))[0].encoder.state_dict()
        assert equal(found, pretrained(context)) == found.keys()


def test_what_is_trained_from_scratch_never_saw_the_pretrained_weights(context, monkeypatch):
    """In `curve` and `tune` themselves, up to the first step."""
    seen = {}
    monkeypatch.setattr(trials.training, "fit", lambda model, *_: seen.update(copy.deepcopy(model.encoder.state_dict())))
    scratch.curve(context, Trial(LABELS, "scratch", 3000), ALLOWED)
    assert seen
    assert equal(seen, initial(context, "scratch", 3000)) == seen.keys()
    trials.tune(context, Trial(LABELS, "tuned", 3000))
    assert equal(seen, pretrained(context)) == seen.keys()


def test_the_untrained_encoder_of_a_floor_is_random_and_the_frozen_one_pretrained(context):
    inputs = baselines.FeatureCache(context)
    images = context.processor(next(context.data.test.batches([torch.arange(20)])))
    for kind, weights in (("random_frozen", initial(context, "scratch", 3)), ("frozen", pretrained(context))):
        encoder = cnn.FAMILY.build(context.cfg.model, context.processor.spec, "eager").eval()
        encoder.load_state_dict(weights)
        with torch.no_grad():
            expected = encoder.features(images).numpy()
        np.testing.assert_allclose(inputs.of(kind, context.data.test)[:20], expected, rtol=1e-5, atol=1e-6)


def test_optimizer_steps_of_fine_tuning(context):
    """Counted in what is logged."""
    trials.tune(context, Trial(LABELS, "tuned", 3000))
    lines = [x for x in context.run.metrics() if x["trial"] == f"{LABELS}-tuned-3000"]
    assert [x["step"] for x in lines] == [1, 2, 3, 4]
    assert {x["stage"] for x in lines} == {"finetune"}


@pytest.mark.parametrize(
    ("samples", "settings", "expected"),
    [
        (100, {"finetune__steps": 7}, 7),
        (100, {"finetune__steps": None, "finetune__epochs": 3.0}, 6),  # two batches of 50 an epoch
        (30, {"finetune__steps": None, "finetune__epochs": 3.0}, 3),  # one smaller batch
        (1000, {"finetune__steps": "auto"}, 300),
        (10_000, {"finetune__steps": "auto"}, 600),  # three passes
    ],
)
def test_planned_steps_against_the_formula(context, samples, settings, expected):
    cfg = parsing.replace(context.cfg, **settings)
    assert trials.trial_steps(cfg, Trial(LABELS, "tuned", 0), samples) == expected


def test_repeats_have_seeds_of_their_own(context):
    assert [t.seed for t in trials.trials(context.cfg, "scratch", LABELS)] == SEEDS


@pytest.mark.parametrize("kind", ["tuned", "scratch"])
def test_training_sees_exactly_the_rows_of_its_trial(context, kind, monkeypatch):
    batches = []
    monkeypatch.setattr(trials.training, "fit", lambda model, found, plan: batches.append((found, plan)))
    for seed in SEEDS:
        if kind == "tuned":
            trials.tune(context, Trial(LABELS, kind, seed))
        else:
            scratch.curve(context, Trial(LABELS, kind, seed), ALLOWED)
        found, plan = batches[-1]
        rows = context.data.train.rows[rows_by_hand(context, seed)].tolist()
        assert sorted(found.split.rows.tolist()) == sorted(rows)
        assert plan.samples == len(rows) == 10 * LABELS
        (batch,) = next(found.iterate(0, 1))
        assert sorted(found.split.rows[batch["ids"]].tolist()) == sorted(rows)
        assert torch.equal(batch["labels"], found.split.labels[batch["ids"]])


@pytest.mark.parametrize("kind", ["raw", "random_frozen", "frozen"])
def test_a_floor_sees_exactly_the_rows_of_the_trial(context, kind, monkeypatch):
    """What reaches the logistic regression: features and labels of these rows, and of no others."""
    given = []

    def logistic(train, labels, test, c=None, standardise=True):
        given.append((train, labels, test))
        return np.zeros((len(test), 10))

    monkeypatch.setattr(classical, "logistic", logistic)
    baselines.baseline_predictions(context, context.problem, kind, LABELS, baselines.FeatureCache(context))
    assert len(given) == len(SEEDS)
    for seed, (train, labels, test) in zip(SEEDS, given, strict=True):
        rows = torch.tensor(rows_by_hand(context, seed))
        assert labels.tolist() == context.data.train.labels[rows].tolist()
        raw, judged = (next(s.batches([i])) for s, i in ((context.data.train, rows), (context.data.test, torch.arange(359))))
        if kind == "raw":
            expected = [(x.double() / 255).flatten(1) for x in (raw, judged)]
        else:
            encoder = baselines.FeatureCache(context).untrained() if kind == "random_frozen" else context.starting_encoder()
            with torch.no_grad():
                expected = [encoder.eval().features(context.processor(x)) for x in (raw, judged)]
        np.testing.assert_allclose(train, expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(test, expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["chance", "raw", "random_frozen", "frozen"])
def test_every_floor_is_given_the_split_of_the_trial(context, kind):
    """Whatever the problem: the stage hands it the subset, once a repeat where the labels differ."""
    given = []
    problem = replace(context.problem, baseline_predictions=lambda kind, data, train, features: given.append(train))
    baselines.baseline_predictions(context, problem, kind, LABELS, baselines.FeatureCache(context))
    expected = [sorted(context.data.train.rows[rows_by_hand(context, seed)].tolist()) for seed in SEEDS]
    assert [sorted(split.rows.tolist()) for split in given] == (expected[:1] if kind == "chance" else expected)
    few = replace(problem, max_baseline_samples=20)
    baselines.baseline_predictions(context, few, kind, LABELS, baselines.FeatureCache(context))
    assert len(given[-1]) == 20
    assert (
        f"{kind}: sees 20 of these {len(expected[0])} training images, evenly spaced" in context.run.path("log.txt").read_text()
    )


def test_chance_is_the_most_frequent_class(context):
    [found] = baselines.baseline_predictions(context, context.problem, "chance", LABELS, baselines.FeatureCache(context))
    most = np.bincount(context.data.train.labels.numpy()).argmax()
    assert found["logits"].argmax(1).tolist() == [most] * 359


def score(context, model):
    """Accuracy on the test split, from the logits."""
    with torch.no_grad():
        logits = model.eval().logits(context.processor(next(context.data.test.batches([torch.arange(359)]))))
    return float((logits.argmax(1) == context.data.test.labels).float().mean())


@pytest.mark.parametrize("kind", ["tuned", "scratch"])  # `tune` takes both; the baseline is trained by stages/scratch.py
def test_fine_tuning_changes_every_weight_and_raises_the_score(context, kind):
    """From a random head at chance, in sixty steps."""
    changes = {"head": "random", "steps": 60, "lr": 2e-2, "layer_decay": 1.0, "augment": 0.0, "batch_size": 25}
    context = with_settings(context, **{f"finetune__{k}": v for k, v in changes.items()})
    trial = Trial(LABELS, kind, 3000)
    before, _ = trials.new_model(context, trial)
    after = trials.tune(context, trial)
    start, end = before.state_dict(), after.state_dict()
    assert {k for k, v in start.items() if v.is_floating_point()} & equal(start, end) == set()
    assert score(context, before) < 0.25
    assert score(context, after) > 0.5
    losses = [x["loss"] for x in context.run.metrics() if x["trial"] == trial.name]
    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_a_linear_fine_tuning_trains_the_head_alone(context):
    context.cfg = compose([*TINY, *SMALL, "finetune=linear", "finetune.steps=30", f"outputs={context.cfg.outputs}"])
    trial = Trial(LABELS, "tuned", 3000)
    before, _ = trials.new_model(context, trial)
    after = trials.tune(context, trial)
    start, end = before.state_dict(), after.state_dict()
    assert start.keys() - equal(start, end) == {"head.weight", "head.bias"}
    assert score(context, after) > score(context, before) + 0.2


def test_what_was_fine_tuned_is_what_is_evaluated(context):
    """Saved and loaded again, the weights and the predictions are those that training ended with."""
    trial = Trial(LABELS, "tuned", 3000)
    model = trials.tune(context, trial)
    trials.save_finetuned(context, trial, model, relative=False)
    loaded = trials.load_finetuned(context, trial)
    assert equal(model.state_dict(), loaded.state_dict()) == model.state_dict().keys()
    found = trials.predict(context, trial)["logits"]
    assert float((found.argmax(1) == context.data.test.labels).float().mean()) == pytest.approx(score(context, model))


def test_each_method_of_an_evaluation_predicts_with_its_own_trial(context, monkeypatch):
    asked = []

    class Enough(Exception):
        pass

    def predict(context, trial, split="test"):
        asked.append((trial.kind, trial.labels, trial.seed))
        return {"logits": torch.zeros(359, 10)}

    def curve(context, trial, allowed):
        return [scratch.Point(steps, predict(context, trial), 0.5) for steps in allowed.points]

    def stop(*arguments):
        raise Enough

    context = with_settings(context, evaluate__scratch_repeats=2, evaluate__baselines=compose([]).evaluate.baselines)
    monkeypatch.setattr(evaluate, "predict", predict)
    monkeypatch.setattr(scratch, "curve", curve)
    monkeypatch.setattr(scratch, "allowance", lambda context, labels: ALLOWED)
    monkeypatch.setattr(evaluate, "baseline_predictions", lambda *_: [predict(context, Trial(LABELS, "floor", 0))])
    monkeypatch.setattr(evaluate, "save_predictions", stop)
    with pytest.raises(Enough):
        evaluate.evaluate(context)
    trained = {(kind, LABELS, seed) for kind in ("tuned", "scratch") for seed in SEEDS}
    assert set(asked) == trained | {("floor", LABELS, 0)}
    assert asked.count(("floor", LABELS, 0)) == 6, "chance, three on pixels, two on features"
    assert [x for x in asked if x[0] == "tuned"] == [("tuned", LABELS, seed) for seed in SEEDS]


def test_a_kernel_machine_and_chosen_neighbours_against_scikit_learn():
    """Of three rings that no line tells apart; with fewer samples of a class than folds their own settings stay."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    angle, radius = random.uniform(0, 6.28, 180), 1 + labels + random.normal(0, 0.15, 180)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    for method in (classical.kernel_machine, classical.best_neighbours):
        assert (method(x[::2], labels[::2], x[1::2]) == labels[1::2]).mean() > 0.9
        assert method(x[[0, 60, 120]], labels[[0, 60, 120]], x[[0, 60, 120]]).tolist() == [0, 1, 2]
    assert (classical.classes(x[::2], labels[::2], x[1::2]) == labels[1::2]).mean() < 0.6
    noisy = np.where(random.uniform(size=180) < 0.4, random.integers(0, 3, 180), labels)
    search = GridSearchCV(KNeighborsClassifier(), {"n_neighbors": [1, 3, 5, 10]}, cv=StratifiedKFold(3)).fit(x[::2], noisy[::2])
    assert search.best_params_["n_neighbors"] > 1
    assert classical.best_neighbours(x[::2], noisy[::2], x[1::2]).tolist() == search.predict(x[1::2]).tolist()


def votes_by_hand(train, labels, test, k):
    """Of the k nearest by Euclidean distance of standardised columns, the most frequent class (of several the lowest)."""
    mean, std = train.mean(0), train.std(0)
    a, b = (train - mean) / std, (test - mean) / std
    nearest = [np.argsort([float(((row - other) ** 2).sum()) for other in a])[:k] for row in b]
    return np.array([np.bincount(labels[i]).argmax() for i in nearest])


def overlapping(columns):
    """Two classes that overlap, with columns of these scales."""
    random = np.random.default_rng(0)
    labels = np.arange(150) % 2
    x = random.normal(size=(150, 3)) + labels[:, None] * [1.0, 0.0, 0.0]
    return x[:100] * columns, labels[:100], x[100:] * columns


def test_nearest_neighbours_against_a_loop():
    train, labels, test = overlapping([1.0, 30.0, 1.0])
    found = classical.neighbours(train, labels, test)
    assert found.tolist() == votes_by_hand(train, labels, test, 10).tolist()
    for k in (1, 5, 9):
        assert found.tolist() != votes_by_hand(train, labels, test, k).tolist(), "ten vote"
    assert classical.neighbours(train[:4], np.array([0, 1, 1, 1]), test).tolist() == [1] * 50


def test_logistic_regression_is_on_standardised_columns():
    """As scikit-learn's own pipeline; and the unit in which a column is measured does not matter."""
    train, labels, test = overlapping([1.0, 300.0, 0.01])
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(train, labels)
    found = classical.logistic(train, labels, test, 0.1)
    np.testing.assert_allclose(found, theirs.predict_log_proba(test), atol=1e-4)
    np.testing.assert_allclose(
        classical.logistic(train * [7, 0.1, 50] + 3, labels, test * [7, 0.1, 50] + 3, 0.1), found, atol=1e-3
    )
    plain = classical.logistic(train, labels, test, 0.1, standardise=False)
    expected = LogisticRegression(C=0.1, max_iter=300).fit(train, labels).predict_log_proba(test)
    np.testing.assert_allclose(plain, expected, atol=1e-9)
    assert np.abs(plain - found).max() > 0.01


class Plain(HandMade):
    """Its features are the inputs."""

    width = 3

    def features(self, inputs):
        return inputs


def test_the_probe_that_a_head_begins_with_does_not_depend_on_the_scale_of_features():
    train, labels, test = (torch.from_numpy(x) for x in overlapping([1.0, 1.0, 1.0]))
    logits = []
    for scale, shift in (([1.0, 1.0, 1.0], 0.0), ([0.05, 40.0, 1.0], 2.0)):
        model = Classifier(Plain(), 2, 0.0)
        model.init_head_from_probe(train * torch.tensor(scale) + shift, labels)
        logits.append(model.logits((test * torch.tensor(scale) + shift).float()).detach())
    torch.testing.assert_close(logits[0], logits[1], atol=2e-3, rtol=1e-2)
    assert logits[0].abs().max() > 0.5


def test_a_floor_of_several_labels_a_sample_sees_its_subset(monkeypatch):
    """One logistic regression for each class, of the rows and labels of the trial."""
    given, random = [], np.random.default_rng(0)
    monkeypatch.setattr(classical, "logistic", lambda x, y, test, **_: given.append((x, y)) or np.zeros((len(test), 2)))

    class Rows:
        def __init__(self, count):
            self.x, self.labels = random.normal(size=(count, 3)), torch.from_numpy(random.integers(0, 2, (count, 4)))

        def __len__(self):
            return len(self.x)

    whole, few, test = Rows(40), Rows(12), Rows(5)
    data = SimpleNamespace(train=whole, test=test, classes=list("abcd"), raw=lambda kind, split: (split.x, test.x, 1.0))
    for kind in ("raw", "frozen"):
        multilabel.baseline_predictions(kind, data, few, lambda kind, split: split.x)
    assert len(given) == 8
    for i, (x, y) in enumerate(given):
        assert np.array_equal(x, few.x)
        assert y.tolist() == few.labels[:, i % 4].bool().tolist()
