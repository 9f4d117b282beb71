"""argv -> a composed config or a verb. The only file (with sweeps to come) that knows Hydra; it never imports torch itself."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ptmrun
from ptmrun import config
from ptmrun.errors import Interrupted, UserError, nearest

VERBS = {
    "resume": ("RUN", "go on with an interrupted run from its last checkpoint; the result is bit-identical"),
    "reproduce": (
        "RUN",
        "run a saved config again in a new folder and say whether the result is the same (exit code 0 or 1)",
    ),
    "report": ("RUN", "write report.html of a run again"),
}
OWN = ("stage", "name", "outputs", "budget", "device")  # not inherited from the run that `init` names


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `ptmrun` command. Exit codes: 0 done, 1 not reproduced, 2 the user's to mend, 128 + signal."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    try:
        return dispatch(argv)
    except UserError as error:
        for line in error.args:
            print(f"ptmrun: {line}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 130


def dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help") or "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"ptmrun {ptmrun.__version__}")
        return 0
    if argv[0] in ("-sc", "--shell-completion"):
        if len(argv) != 2 or argv[1].split("=")[0] not in ("install", "uninstall", "query"):
            raise UserError('-sc: expected install=SHELL, as in: eval "$(ptmrun -sc install=bash)" (bash, fish or zsh)')
        hydra_main(lambda _: None, argv)
        return 0
    if argv[0] in VERBS:
        return verb(argv[0], argv[1:])
    flags = [a for a in argv if a.startswith("-")]
    overrides = [a for a in argv if not a.startswith("-")]
    if flags in (["-m"], ["--multirun"]):
        return multirun(overrides)
    if flags in (["-c"], ["--cfg"]) and "job" in overrides:
        overrides.remove("job")
        print(config.dump(compose(overrides)), end="")
        return 0
    if flags:
        raise UserError(f"{flags[0]}: no such option; there is: --help, --version, -m (sweep), --cfg job, -sc (completion)")
    if "=" not in overrides[0]:
        raise UserError(f"{overrides[0]}: no such verb{nearest(overrides[0], VERBS)}; settings have the form key=value")
    cfg = compose(overrides)
    from ptmrun import stages

    stages.run(cfg, overrides)
    return 0


def verb(name: str, args: list[str]) -> int:
    folders = [a for a in args if "=" not in a and not a.startswith("-")]
    settings = dict(a.split("=", 1) for a in args if a not in folders and "=" in a)
    if len(folders) != 1 or set(settings) - {"outputs"} or any(a.startswith("-") for a in args):
        raise UserError(f"{name}: expected one run folder, as in: ptmrun {name} outputs/latest")
    from ptmrun.run import Run

    folder = Path(folders[0])
    if name == "reproduce":
        run = Run.open(folder)
        from ptmrun import reproduce

        return 0 if reproduce.reproduce(run, settings.get("outputs", "outputs")) else 1
    run = Run.open(folder)
    if name == "resume":
        from ptmrun import stages

        stages.resume(run)
    else:
        from ptmrun import report

        print(report.write(run))
    return 0


def compose(overrides: list[str]) -> config.Config:
    """Overrides -> the config of one run. Raises UserError with all mistakes at once."""
    groups, values, mistakes = sort_overrides(overrides, sweep=False)
    parent = parent_config(values)
    if parent:
        groups = {g: parent[g]["name"] for g in config.SECTIONS if g not in OWN} | groups
    base = [f"{group}={choice}" for group, choice in groups.items()]
    known = compose_raw(base)
    good = []
    for key, text in values.items():
        if wrong := unknown(key, known):
            mistakes.append(wrong)
        else:
            good.append(f"{key}={text}")
    raw = compose_raw(base + good)
    given = [g.split("=")[0] for g in good]
    if parent:
        raw = inherit(raw, parent, overrides, given)
    one_length(raw, given)
    try:
        parsed = config.parse(raw)
    except UserError as error:
        raise UserError(*mistakes, *error.args) from None
    if mistakes:
        raise UserError(*mistakes)
    return parsed


def sort_overrides(overrides: list[str], sweep: bool) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Overrides -> {group: choice}, {dotted key: value as text}, mistakes. A `+` before a known key means nothing more."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    groups: dict[str, str] = {}
    values: dict[str, str] = {}
    mistakes = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            mistakes.append(f"{text}: expected key=value in Hydra's grammar (quote what is special in it)")
            continue
        key = override.key_or_group
        if override.is_delete():
            mistakes.append(f"{text}: a key cannot be removed; set it to null where that is allowed")
        elif override.is_sweep_override() and not sweep:
            mistakes.append(f"{text}: several values are a sweep, which needs -m")
        elif key.split(".")[0] == "hydra":
            if not sweep:
                mistakes.append(f"{text}: hydra settings belong to a sweep (-m)")
        elif key in config.GROUPS:
            wanted = text.split("=", 1)[1].split(",") if sweep else [str(override.value())]
            there = config.choices(key)
            allowed = {*there, "null"} if key == "experiment" else set(there)
            mistakes += [f"{key}={c}: no such {key}{nearest(c, there)}" for c in wanted if c.strip() not in allowed]
            if not sweep and wanted[0] in there:
                groups[key] = wanted[0]
        else:
            values[key] = text.split("=", 1)[1]
    return groups, values, mistakes


def compose_raw(overrides: list[str]) -> dict[str, Any]:
    """Hydra's compose as a plain dict, without the `spec` blocks."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    outer = GlobalHydra.instance().hydra  # that of a sweep, whose jobs are composed here too
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config.CONF), version_base="1.3", job_name="ptmrun"):
            return settings_only(OmegaConf.to_container(hydra_compose("config", overrides), resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None
    finally:
        GlobalHydra.instance().hydra = outer


def settings_only(raw: Any) -> dict[str, Any]:
    """The composed config without what describes it."""
    raw.pop("experiment", None)
    return {k: {n: v for n, v in part.items() if n != "spec"} if isinstance(part, dict) else part for k, part in raw.items()}


def unknown(key: str, raw: dict[str, Any]) -> str | None:
    """What is wrong with a dotted key, if anything."""
    where: Any = raw
    *parents, last = key.split(".")
    for depth, part in enumerate([*parents, last]):
        if not isinstance(where, dict) or part not in where:
            names = where if isinstance(where, dict) else {}
            near = nearest(part, names)
            if "did you mean" not in near and (home := [k for k in raw if isinstance(raw[k], dict) and last in raw[k]]):
                near = f" (did you mean {' or '.join(f'{k}.{last}' for k in home)}?)"
            return f"{'.'.join([*parents, last][: depth + 1])}: no such key{near}"
        where = where[part]
    return None


def parent_config(values: dict[str, str]) -> dict[str, Any] | None:
    """The saved config of the run that `init` names."""
    init = values.get("init", "random").strip("'\"")
    if init == "random":
        return None
    from ptmrun.run import Run

    run = Run.open(Path(init))
    # the folder itself, not `latest`, which will soon name the run to come
    return config.plain(config.load(run.path("config.yaml"))) | {"init": str(run.folder)}


def inherit(raw: dict[str, Any], parent: dict[str, Any], overrides: list[str], given: list[str]) -> dict[str, Any]:
    """A run that starts from another one keeps that one's settings, but for OWN, chosen groups and the keys given."""
    chosen = {o.lstrip("+").split("=")[0] for o in overrides} - {"init"}
    result = {k: raw[k] if k in OWN or k in chosen or k not in parent else parent[k] for k in raw}
    for key in set(given) - {"init"}:
        *parents, last = key.split(".")
        source, target = raw, result
        for part in parents:
            source, target = source[part], target[part]
        target[last] = source[last]
    return result


def one_length(raw: dict[str, Any], given: list[str]) -> None:
    """Of `epochs` and `steps`, the one that was given takes the other's place."""
    for section in ("pretrain", "finetune"):
        for mine, other in (("epochs", "steps"), ("steps", "epochs")):
            if f"{section}.{mine}" in given and f"{section}.{other}" not in given and isinstance(raw[section], dict):
                raw[section][other] = None


def multirun(overrides: list[str]) -> int:
    """Hydra's multirun with its basic launcher: each job is a run with a folder of its own."""
    *_, mistakes = sort_overrides(overrides, sweep=True)
    if mistakes:
        raise UserError(*mistakes)
    failed: list[str] = []

    def job(_: Any) -> None:
        from hydra.core.hydra_config import HydraConfig

        mine = list(HydraConfig.get().overrides.task)
        try:
            parsed = compose(mine)
            from ptmrun import stages

            stages.run(parsed, mine)
        except Interrupted:
            raise KeyboardInterrupt from None  # Hydra would take any other error for a failed job and go on
        except UserError as error:
            failed.append(" ".join(mine))
            for line in error.args:
                print(f"ptmrun: {' '.join(mine)}: {line}", file=sys.stderr)

    hydra_main(job, ["--multirun", *overrides])
    return 2 if failed else 0


def hydra_main(job: Callable[[Any], None], argv: list[str]) -> None:
    import hydra

    sys.argv = [sys.argv[0], *argv]
    hydra.main(config_path=os.fspath(config.CONF), config_name="config", version_base="1.3")(job)()


def help_text() -> str:
    lines = [
        "ptmrun: pretrain, fine-tune and evaluate pre-trained models",
        "",
        "  ptmrun model=vit task=mim                          pretrain -> finetune -> evaluate on the built-in digits",
        "  ptmrun dataset=imagefolder dataset.root=photos     the same with your own images",
        "  ptmrun stage=finetune init=outputs/latest finetune=linear    one stage, from an earlier run",
        "  ptmrun -m task=mim,simmim seed=1,2,3               sweep",
        "",
        "Verbs",
        *(f"  ptmrun {name + ' ' + args:<15} {what}" for name, (args, what) in VERBS.items()),
        "",
        "Groups (group=choice)",
    ]
    for group in config.GROUPS:
        lines.append(f"  {group}")
        lines += [f"    {name:<15} {config.summary(group, name)}" for name in config.choices(group)]
    lines += [
        "",
        "Keys (key=value; all of them with their defaults: ptmrun --cfg job)",
        "  stage=all|pretrain|finetune|evaluate    init=random|RUN    seed=0    name=TEXT    budget=20m    outputs=FOLDER",
        "  pretrain.epochs= .steps= .batch_size= .lr= ...       finetune.steps= .batch_size= .lr= .seeds= ...",
        "  dataset.root= .limit= .image_size=    downstream.labels_per_class=10|[10,100]|null",
        "  device.precision=auto|fp32|bf16  .workers=  .threads=  .compile=",
        "",
        'Options: --help  --version  -m (sweep)  --cfg job (print the config)  eval "$(ptmrun -sc install=bash)" (completion)',
    ]
    return "\n".join(lines)
