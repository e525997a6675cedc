"""Modes: ways of executing a model's experts that differ from what its routers say. One mode, one file."""
