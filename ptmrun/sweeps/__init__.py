"""Many runs of one command: jobs, their ledger, a search, their table."""
