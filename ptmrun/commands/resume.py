"""`ptmrun resume`: goes on with an interrupted run."""

from ptmrun.commands.table import Call
from ptmrun.compose import compose
from ptmrun.config import parsing
from ptmrun.runs import config_file


def command(call: Call) -> int:
    [run], settings = call.runs, call.settings
    saved = config_file.load(run.sound("config.yaml"))
    fork = "--fork" in call.flags
    if fork:
        saved = parsing.replace(saved, init=str(run.folder), outputs=str(run.folder.parent))
    cfg = compose(settings, saved)
    from ptmrun.stages import run as stages  # imports torch: not before the settings are known to be right

    if fork:
        stages.run(cfg, settings, verb=f"resume {call.names[0]} --fork")
    else:
        stages.resume(run, cfg)
    return 0
