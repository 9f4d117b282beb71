"""Settings that follow from others when a config is composed."""

from typing import Any

from ptmrun.config import schema, specs
from ptmrun.config.grammar import compose_raw
from ptmrun.config.init_source import OUTSIDE, origin

LARGE_SCRATCH_LR = 1e-3  # AdamW's, of networks that weights from outside are for: at 3e-3 MiniLM's stays at chance


def defaults(saved: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """What composing the same choices now gives for keys that a saved config lacks."""
    raw = compose_raw([f"{group}={saved[group]['name']}" for group in schema.SECTIONS])  # which is changed below
    settings_of_problem(raw, set())
    published_rates(raw | {"init": saved.get("init", raw["init"])}, set())
    known = schema.flat(raw)
    return {key: known[key] for key in keys if key in known}


def steps_or_epochs(raw: dict[str, Any], typed: set[str], brought: set[str]) -> None:
    """Of `epochs` and `steps`, the one that was typed, else the one that an experiment brought, takes the other's place."""
    for section in ("pretrain", "finetune"):
        both = {f"{section}.epochs", f"{section}.steps"}
        given = both & typed or both & brought
        if len(given) == 1 and isinstance(raw[section], dict):
            [other] = both - given
            raw[section][other.removeprefix(f"{section}.")] = None


def settings_of_problem(raw: dict[str, Any], given: set[str]) -> None:
    """What the problem sets instead of the model, where neither the user nor the method of fine-tuning does."""
    given = given | specs.keys_of("finetune", raw["finetune"]["name"])
    for key, value in specs.prevailing(raw["downstream"]["name"], raw["model"]["name"]).items():
        section, name = key.split(".")
        if key not in given:
            raw[section][name] = value


def published_rates(raw: dict[str, Any], given: set[str]) -> None:
    """Weights from outside are trained at the rate for published ones, unless a rate was given, and keep their statistics; their
    networks from scratch at one that large networks bear."""
    outside, tuning = origin(raw["init"]) in OUTSIDE, raw["finetune"]
    if raw["downstream"].get("head") == "auto":  # here, as the network from scratch is to have the same
        raw["downstream"]["head"] = "linear" if tuning["name"] == "linear" else "fcn"
    if tuning["statistics"] == "auto":
        tuning["statistics"] = "kept" if outside else "batch"
    if outside:
        if tuning["layer_decay"] == "auto":
            tuning["layer_decay"] = schema.LAYER_DECAY
        for section in ("pretrain", "finetune"):
            loop = raw[section]
            if loop["published_lr"] and f"{section}.lr" not in given:
                loop["lr"] = loop["published_lr"]
        if "finetune.scratch_lr" not in given and tuning["optimizer"] == "adamw":
            tuning["scratch_lr"] = LARGE_SCRATCH_LR


def micro_batches(raw: dict[str, Any], given: set[str]) -> None:
    """With several processes at least as many micro-batches, where their number was not given."""
    for section in ("pretrain", "finetune"):
        loop, processes = raw[section], raw["device"]["processes"]
        if f"{section}.accumulate" not in given and all(
            isinstance(x, int) for x in (processes, loop["accumulate"], loop["batch_size"])
        ):
            loop["accumulate"] = max(loop["accumulate"], min(processes, loop["batch_size"]))
