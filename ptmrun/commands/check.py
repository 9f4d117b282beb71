"""`ptmrun check`: tries out what a config names."""

from ptmrun.commands.table import Call
from ptmrun.compose import compose


def command(call: Call) -> int:
    cfg = compose(call.settings)
    from ptmrun.commands.preflight import check  # imports torch: not before the settings are known to be right

    return 0 if check(cfg) else 1
