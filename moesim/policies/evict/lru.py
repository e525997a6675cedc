"""Least recently used.

    on every use: stamp the expert with the time
    victim:       the oldest stamp

A prefetch stamps the expert when it takes its slot; the choice of a resident by a prefetch does not.
"""

from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "lru")
class LRU(Evict):
    """Key: time of last use."""

    def __init__(self) -> None:
        self._clock = 0

    def on_hit(self, expert: int) -> int:
        self._clock += 1
        return self._clock

    on_insert = on_hit
