"""`ptmrun check`: tries out what a config names."""

from ptmrun.commands.table import Call
from ptmrun.compose import compose
from ptmrun.runs.console import for_programs, print_json


def command(call: Call) -> int:
    cfg = compose(call.settings)
    from ptmrun.commands.preflight import FAILED, check  # imports torch: not before the settings are known to be right

    with for_programs("--json" in call.flags):
        findings = check(cfg)
    passed = not any(finding.status == FAILED for finding in findings)
    if "--json" in call.flags:
        print_json({"passed": passed, "findings": [finding._asdict() for finding in findings]})
    return 0 if passed else 1
