"""Search for good settings by Optuna: a thin ask-and-tell around the jobs of a sweep.

The study is a sqlite file in the sweep's folder, so a search goes on where it was stopped. What it looks at is the score on
held-out training images, never the test split.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptmrun.compose import compose
from ptmrun.config.grammar import parsed
from ptmrun.config.schema import Sweep
from ptmrun.errors import UserError
from ptmrun.sweeps.ledger import Job, Ledger

FIRST = 5  # trials that no trial is pruned before


def optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError("sweep.search=optuna: not installed; pip install 'ptmrun[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(folder: Path) -> str:
    return f"sqlite:///{Ledger(folder).inside('optuna.db').resolve()}"


def space(overrides: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Hydra's grammar -> (overrides of every trial, {key: Optuna's distribution}): `a,b`, `choice()`, `range()`, `interval()`;
    `tag(log,interval(1e-4,1e-2))` on a logarithmic scale."""
    given = optuna().distributions
    fixed, searched = [], {}
    for text, override in zip(overrides, parsed(overrides), strict=True):
        if not override.is_sweep_override():
            fixed.append(text)
        elif override.is_discrete_sweep():
            searched[override.get_key_element()] = given.CategoricalDistribution(list(override.sweep_string_iterator()))
        else:
            interval = override.value()
            kind = given.IntDistribution if isinstance(interval.start, int) else given.FloatDistribution
            try:
                searched[override.get_key_element()] = kind(interval.start, interval.end, log="log" in interval.tags)
            except ValueError as error:
                raise UserError(f"{text}: {error}") from None
    if not searched:
        raise UserError("sweep.search=optuna: nothing to search; give a key several values or an interval(low,high)")
    return fixed, searched


def run(ledger: Ledger, settings: Sweep, overrides: list[str], launch: Any) -> None:
    """Asks for trials, launches them as jobs and tells how they ended, until there are settings.trials of them."""
    library = optuna()
    if any(j.trial is None for j in ledger.jobs()):
        raise UserError(f"sweep.resume={ledger.folder}: holds the jobs of a grid; a search needs a folder of its own")
    fixed, searched = space(overrides)
    compose([*fixed, *(f"{key}={text(first(d))}" for key, d in searched.items())])  # a mistake is said before a study is made
    study = library.create_study(
        study_name="ptmrun", storage=storage(ledger.folder), direction="maximize", load_if_exists=True, pruner=pruner()
    )
    while True:
        jobs = {j.trial: j for j in ledger.jobs()}
        open_ = [t for t in study.trials if not t.state.is_finished()]  # asked for before the search was stopped
        numbers = [t.number for t in open_]
        while len(numbers) < settings.batch and len(study.trials) < settings.trials:
            # a sampler of its own for every trial: a search that was stopped goes on as if it had not been
            seed = settings.seed + len(study.trials)
            study.sampler = library.samplers.TPESampler(seed=seed, constant_liar=settings.batch > 1)
            numbers.append(study.ask(searched).number)
        if not numbers:
            return
        batch = []
        for number in numbers:
            params = study.trials[number].params
            mine = [*fixed, *(f"{key}={text(value)}" for key, value in params.items())]
            batch.append(jobs.get(number) or ledger.write(Job(number=number, overrides=mine, trial=number)))
        launch(batch)
        for entry in [ledger.job(j.number) for j in batch]:
            tell(study, library.trial.TrialState, entry)


def tell(study: Any, states: Any, entry: Job) -> None:
    """What became of a trial; one that was interrupted stays open."""
    if entry.status == "done" and entry.val_score is not None:
        study.tell(entry.trial, entry.val_score)
    elif entry.status == "pruned":
        study.tell(entry.trial, state=states.PRUNED)
    elif entry.status in ("done", "failed", "killed"):
        study.tell(entry.trial, state=states.FAIL)


def first(distribution: Any) -> Any:
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def pruner() -> Any:
    return optuna().pruners.MedianPruner(n_startup_trials=FIRST)


class Pruner:
    """Follows a trial's probes, from whichever process works on it."""

    def __init__(self, folder: Path, number: int):
        library = optuna()
        study = library.load_study(study_name="ptmrun", storage=storage(folder), pruner=pruner())
        self.trial = library.trial.Trial(study, study.trials[number]._trial_id)
        self.seen = -1

    def hopeless(self, metrics: Iterable[dict[str, Any]]) -> bool:
        """Whether the last probe is below the median of what other trials had at that step."""
        for line in metrics:
            if "probe_linear" in line and line["step"] > self.seen:
                self.seen = line["step"]
                self.trial.report(line["probe_linear"], self.seen)
                if self.trial.should_prune():
                    return True
        return False
