"""Belady's optimal replacement, per event: the bound on misses.

    on every use: look up the next event that selects the expert
    victim:       the one whose next event is farthest; never-again before all others; ties go to the least
                  recently used (which of them goes changes who misses, not how many)

Insertion is mandatory, like for every online policy here. `belady[bypass]` may drop what it has just used.
Both bound the misses (not the time) of lossless policies without prefetch and without re-routing.
L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966.
"""

from collections.abc import Iterable

from moesim.events import UseList
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "belady")
class Belady(Evict):
    """Key: (minus the number of the next event that selects the expert, time of last use)."""

    oracle = True

    def __init__(self, bypass: bool = False) -> None:
        self.bypass = bypass

    def prepare(self, layers: int, experts: int, slots: int, future: UseList | None) -> None:
        assert future is not None, "an oracle is always given the future"
        self._future = future
        self._event = -1
        self._clock = 0

    def on_layer_start(self, layer: int) -> Iterable[tuple[int, int]]:
        self._event += 1
        return ()

    def on_hit(self, expert: int) -> tuple[int, int]:
        self._clock += 1
        return -self._future.next_event(expert, self._event), self._clock

    on_insert = on_hit
