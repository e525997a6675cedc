"""Hypothesis draws the same examples at every run, so that a red run is the change's own doing.

No example has a deadline: how long one takes says how busy the machine is. `pytest --hypothesis-profile=search` draws
new ones; `python -m tests.fuzz` searches at length.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("default"), derandomize=False)
settings.load_profile("repeatable")
