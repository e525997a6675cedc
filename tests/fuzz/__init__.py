"""Hostile input: whatever a file holds, moesim uses it or refuses it in one line. `python -m tests.fuzz --help`."""
