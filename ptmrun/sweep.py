"""Sweeps: Hydra's multirun."""

import sys
from typing import Any

from ptmrun.compose import compose, hydra_main, sort_overrides
from ptmrun.errors import Interrupted, UserError


def run(overrides: list[str]) -> int:
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
