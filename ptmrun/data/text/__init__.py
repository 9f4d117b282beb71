"""Texts as the data of a run."""
