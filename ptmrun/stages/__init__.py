"""Pretraining, fine-tuning and evaluation, in the order of a run."""
