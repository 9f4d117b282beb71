"""Run a saved config again and say whether the result is the same."""

from typing import Any

from ptmrun.commands.table import Call
from ptmrun.compose import compose
from ptmrun.config import parsing, schema
from ptmrun.config.init_source import origin
from ptmrun.errors import UserError
from ptmrun.runs import changes, config_file, provenance
from ptmrun.runs.folder import Run
from ptmrun.runs.lineage import parent_of
from ptmrun.stages import run as stages

TIMED = {"time", "samples_per_s", "data_wait"}  # entries of a metrics line that differ from run to run
TOLERANCE = 0.01  # of a score


def reproduce(old: Run, settings: list[str]) -> bool:
    """A new run of the saved config; True when its weights, metrics and results are the same bit for bit or within tolerance.
    settings: `outputs=`, and where data lie that have moved."""
    if old.manifest["status"] != "done":
        raise UserError(f"{old.folder}: is {old.manifest['status']}, not done; there is no result to compare with")
    for name in ("metrics.jsonl", "results.json"):  # what is compared, before hours of training
        old.sound(name)
    saved = parsing.replace(
        config_file.load(old.sound("config.yaml")), outputs="outputs", logger={"name": "none"}, skip_done=False
    )
    cfg = compose(settings, saved)
    for key, (before, after) in changes.differences(saved, cfg).items():
        if key != "outputs" and schema.Role.PLACE not in schema.role_of(saved, key):
            line = f"{key}: {parsing.shown(before)} -> {parsing.shown(after)}"
            raise UserError(f"{line}: only places may change; resume --fork starts a new run with other settings")
    known, where = {"data": old.manifest.get("data")}, origin(cfg.init)
    parents = old.manifest.get("parents", [])
    if where == "run" and parent_of(cfg)["weights_sha256"] not in [p.get("weights_sha256") for p in parents]:
        raise UserError(f"init={cfg.init}: its weights are not those that {old.folder} started from")
    if where != "run":
        known["parents"] = parents  # which are compared when the weights have been loaded
    new = stages.run(cfg, [], verb=f"reproduce {old.folder.resolve().name}", known=known)
    new.update(reproduces=old.folder.resolve().name)
    other = differences(old, new)
    for line in other:
        new.say(f"  {line}")
    if exact(old, new):
        new.say(f"bit-exact: {new.folder} has the weights, metrics and results of {old.folder}")
        return True
    gap = score_gap(old, new)
    if gap is not None and gap <= TOLERANCE:
        new.say(f"within tolerance: scores differ by at most {gap:.4f} (limit {TOLERANCE})")
        return True
    new.say(f"different: {'scores differ by ' + format(gap, '.4f') if gap is not None else 'weights or metrics differ'}")
    if not other:
        new.say("  config, code, packages, hardware and data are the same: something is not deterministic on this machine")
    return False


def differences(old: Run, new: Run) -> list[str]:
    """What is not as it was: packages, code, hardware, config."""
    lines = []
    a, b = old.manifest, new.manifest
    for name, version in b["packages"].items():
        if (before := a.get("packages", {}).get(name)) != version:
            lines.append(f"package {name}: {before} then, {version} now")
    if a.get("code_sha256") != provenance.code_hash():
        lines.append("code: the package's files have changed")
    if a.get("hardware") != b["hardware"]:
        lines.append(f"hardware: {a.get('hardware')} then, {b['hardware']} now")
    lines += [f"config changed when it was resumed: {line}" for line in a.get("changed", [])]
    then, now = (config_file.load(run.sound("config.yaml")) for run in (old, new))
    lines += [
        f"config {key}: {before} then, {after} now"
        for key, (before, after) in changes.differences(then, now).items()
        if key != "outputs" and not key.startswith("logger.") and schema.Role.PLACE not in schema.role_of(then, key)
    ]
    return lines


def exact(old: Run, new: Run) -> bool:
    """The same weight hashes, metrics lines and results, but for times."""
    weights = all(old.manifest.get(k) == new.manifest.get(k) for k in ("weights_sha256", "finetuned_sha256"))
    return weights and timeless(old) == timeless(new) and results(old) == results(new)


def timeless(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMED} for line in run.metrics()]


def results(run: Run) -> Any:
    content = run.results()
    if content is None:
        return None
    for name in ("wall_s", "cpu_s"):
        content.pop(name, None)
    if content.get("pretrain"):
        content["pretrain"].pop("samples_per_s", None)
    return content


def score_gap(old: Run, new: Run) -> float | None:
    """The largest difference between scores of the two runs; None without scores."""
    a, b = results(old), results(new)
    if not a or not b:
        return None
    pairs = [
        (x["scores"][kind]["mean"], y["scores"][kind]["mean"])
        for x, y in zip(a["by_labels"], b["by_labels"], strict=False)
        for kind in x["scores"].keys() & y["scores"].keys()
    ]
    return max((abs(x - y) for x, y in pairs), default=None)


def command(call: Call) -> int:
    return 0 if reproduce(call.runs[0], call.settings) else 1
