"""Slow, obviously right second implementations, written from the text of the semantics and never from the package."""
