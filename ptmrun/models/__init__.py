"""One file a model family, with its `FAMILY`; see base.py."""
