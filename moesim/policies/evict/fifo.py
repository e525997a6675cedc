"""First in, first out.

    on insertion: stamp the expert with the time
    on use:       nothing
    victim:       the oldest stamp
"""

from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "fifo")
class FIFO(Evict):
    """Key: time of insertion."""

    def __init__(self) -> None:
        self._clock = 0
        self._inserted: dict[int, int] = {}

    def on_insert(self, expert: int) -> int:
        self._clock += 1
        self._inserted[expert] = self._clock
        return self._clock

    def on_hit(self, expert: int) -> int:
        return self._inserted[expert]

    def on_evict(self, expert: int) -> None:
        del self._inserted[expert]
