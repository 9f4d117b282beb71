"""The run folder: what is in it, what it started from, what is said while it runs."""
