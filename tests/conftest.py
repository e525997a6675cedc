"""Hypothesis draws the same examples at every run, so that a red run is the change's own doing.

`pytest --hypothesis-profile=search` draws new ones; `python -m tests.fuzz` searches at length.
"""

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", settings.get_profile("default"), derandomize=False)
settings.load_profile("repeatable")
