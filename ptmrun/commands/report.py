"""`ptmrun report`: writes report.html of a run again."""

from ptmrun.commands.table import Call
from ptmrun.errors import printable
from ptmrun.reports import report


def command(call: Call) -> int:
    print(printable(str(report.write(call.runs[0]))))
    return 0
