"""What `ptmrun bench` measures: one file a part, with `rows(pairs, folder)`, which yields each row.Row when it is measured.
On one thread; CPU time but for `profile`, and both sides of a ratio by turns."""

PARTS = ("loop", "profile", "trainer", "lightning", "start", "data", "growth", "sweep", "processes")
MISSING = "pip install 'ptmrun[bench]'"  # why a part is not run that needs a library which is not there
