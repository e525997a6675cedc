"""Least frequently used.

    on insertion: the count is 1 if an event needs the expert, 0 if it is only foreseen
    on use:       add 1
    victim:       the smallest count; ties go to the least recently used, never to an expert's number

Counts start anew at each insertion (the house's section 7): history before the last eviction is forgotten.
"""

from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "lfu")
class LFU(Evict):
    """Key: (uses since insertion, time of last use)."""

    def __init__(self) -> None:
        self._clock = 0
        self._uses: dict[int, int] = {}

    def _stamp(self, expert: int, uses: int) -> tuple[int, int]:
        self._clock += 1
        self._uses[expert] = uses
        return uses, self._clock

    def on_insert(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, 1)

    def on_prefetch(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, 0)

    def on_hit(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, self._uses[expert] + 1)

    def on_evict(self, expert: int) -> None:
        del self._uses[expert]
