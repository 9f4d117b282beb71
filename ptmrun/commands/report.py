"""`ptmrun report`: writes report.html of a run again, or of a sweep."""

from pathlib import Path

from ptmrun.commands.table import Call
from ptmrun.errors import printable
from ptmrun.reports import report
from ptmrun.runs.folder import Run
from ptmrun.sweeps import sweep
from ptmrun.sweeps.ledger import Ledger


def command(call: Call) -> int:
    ledger = Ledger(Path(call.names[0]))
    if ledger.jobs():
        sweep.report(ledger)
    else:
        print(printable(str(report.write(Run.open(ledger.folder)))))
    return 0
