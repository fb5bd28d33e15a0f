"""Real servers that are too large for every run of the suite: `python -m tests.servers.slow`, described in docs/slow-servers.md."""
