"""Overrides -> the config of one run, by Hydra's compose. Every mistake is found at once, and torch is not imported."""

import copy
from pathlib import Path
from typing import Any

from ptmrun.config import parsing, schema, specs
from ptmrun.config.derived import micro_batches, published_rates, settings_of_problem, steps_or_epochs
from ptmrun.config.grammar import as_text, compose_raw, composed_choices, sort_overrides, unknown
from ptmrun.config.init_source import origin
from ptmrun.config.launch import launched
from ptmrun.errors import UserError
from ptmrun.runs import config_file

OWN = tuple(schema.keys_with(schema.Role.OWN))  # not inherited from the run of `init`


def compose(overrides: list[str], saved: schema.Config | None = None) -> schema.Config:
    """Overrides -> the config of one run; with a saved config, that one with what the overrides change.

    Raises UserError with all mistakes at once.
    """
    groups, values, mistakes = sort_overrides(overrides, sweep=False)
    if saved and "init" in values:
        mistakes.append(f"init={values['init']}: a run that is resumed or forked keeps its weights; for others make a new run")
    parent, own = (parsing.plain(saved), ()) if saved else (parent_config(values), OWN)
    experiment = groups.get("experiment")
    chosen = (specs.choices_of_experiment(experiment) if experiment else {}) | groups
    if parent:
        groups = {g: parent[g]["name"] for g in schema.SECTIONS if g not in own} | chosen
    else:
        usual = [specs.spec(group, chosen[group]).usual for group in ("downstream", "dataset") if group in chosen]
        groups = {group: choice for some in usual for group, choice in some.items() if group not in chosen} | groups
    base = [f"{group}={choice}" for group, choice in groups.items()]
    good = [f"{key}={text}" for key, text in values.items()]
    try:
        known = raw = compose_raw(base + good)
    except UserError:  # Hydra names one mistake; all of them are found beside what the choices give
        known, raw = composed_choices(*base), {}
    wrong = {key: mistake for key in values if (mistake := unknown(key, known))}
    mistakes += wrong.values()
    good = [f"{key}={text}" for key, text in values.items() if key not in wrong]
    raw = raw or (compose_raw(base + good) if good else copy.deepcopy(known))
    typed = {g.split("=")[0] for g in good}
    brought = (
        {k for k in specs.settings_of_other_groups("experiment", experiment) if unknown(k, raw) is None} if experiment else set()
    )
    settings_of_problem(raw, typed | brought | specs.keys_of_users(chosen))
    published_rates(raw, typed | brought)
    if parent:
        raw = inherit(raw, parent, own, set(chosen), typed | brought)
    steps_or_epochs(raw, typed, brought)
    if processes := launched():
        if "device.processes" in typed and raw["device"]["processes"] != processes:
            mistakes.append(f"device.processes={values['device.processes']}: torchrun has started {processes}; leave it out")
        raw["device"]["processes"] = processes
    if not saved:
        micro_batches(raw, typed | brought)
    kind = parsing.kind_of(raw)
    for key in sorted(set(parsing.leave_out_foreign(raw)) & typed):
        mistakes.append(f"{key}: data of the kind {kind} (dataset={raw['dataset']['name']}) have no such setting; leave it out")
    try:
        parsed = parsing.parse(raw)
    except UserError as error:
        lines = [*mistakes, *(as_text(line, values) for line in error.args)]
        raise (UserError(*lines) if mistakes else type(error)(*lines)) from None
    if mistakes:
        raise UserError(*mistakes)
    return parsed


def parent_config(values: dict[str, str]) -> dict[str, Any] | None:
    """The saved config of the run that `init` names; none when it names something else."""
    init = values.get("init", "random").strip("'\"")
    if origin(init) != "run":
        return None
    from ptmrun.runs.folder import Run

    run = Run.open(Path(init))
    # the folder itself, not `latest`, which will soon name the run to come
    return parsing.plain(config_file.load(run.sound("config.yaml"))) | {"init": str(run.folder)}


def inherit(
    raw: dict[str, Any], parent: dict[str, Any], own: tuple[str, ...], chosen: set[str], given: set[str]
) -> dict[str, Any]:
    """A run that starts from another one keeps that one's settings, but for its own, chosen groups and the keys given.

    What a choice sets in other groups comes and goes with it: the labels per class of a data set, the learning rate of a task.
    """
    result = {k: raw[k] if k in own or k in chosen or k not in parent else parent[k] for k in raw}
    with_it = set()
    for group in chosen & set(schema.SECTIONS) - set(own):
        before, after = parent[group]["name"], raw[group]["name"]
        if before != after:
            was, known = specs.settings_of_other_groups(group, before), schema.flat(parent)
            with_it |= {k for k, v in was.items() if known.get(k) == v} | set(specs.settings_of_other_groups(group, after))
    for key in (given | with_it) - {"init"}:
        *parents, last = key.split(".")
        source, target = raw, result
        for part in parents:
            source, target = source[part], target[part]
        target[last] = source[last]
    return result
