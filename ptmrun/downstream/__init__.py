"""One file a kind of labelled problem: its head, its loss, its labels and its metrics."""
