"""One file a pretraining objective, with its `Objective`; see base.py."""
