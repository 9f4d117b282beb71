"""One file or folder a labelled problem, with its `PROBLEM`; see base.py."""
