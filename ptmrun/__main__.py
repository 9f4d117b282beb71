"""`python -m ptmrun` is `ptmrun`."""

from ptmrun.cli import main

main()
