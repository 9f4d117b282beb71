"""One file a verb, with `command(call) -> exit code`; table.py says how each is typed."""
