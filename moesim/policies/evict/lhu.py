"""Least high-precision used (HOBBIT, arXiv 2411.01433; an eviction axis of SpecMD, arXiv 2602.03921).

    a use is high precision if the experts of greater gate weight carry at most 0.6 of their token's weight
    on insertion: the count is 1 if this use is high precision, 0 if not or if the expert is only foreseen
    on use:       add 1 if it is high precision
    victim:       the smallest count; ties go to the least recently used

So an expert that is often chosen but only ever as a makeweight goes before one that is chosen rarely and decides.
Counts start anew at each insertion, like those of `lfu`.
"""

from moesim.events import Step
from moesim.policies.precision import high_precision
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "lhu")
class LHU(Evict):
    """Key: (high-precision uses since insertion, time of last use)."""

    def __init__(self, high: float = 0.6) -> None:
        self._limit = high
        self._clock = 0
        self._uses: dict[int, int] = {}
        self._high: set[int] = set()

    def prepare(self, layers: int, experts: int, slots: int, future: object) -> None:
        self._experts = experts

    def on_event(self, step: Step, layer: int) -> None:
        base = layer * self._experts
        self._high = {base + e for e in high_precision(step, layer, self._limit)}

    def _stamp(self, expert: int, uses: int) -> tuple[int, int]:
        self._clock += 1
        self._uses[expert] = uses
        return uses, self._clock

    def on_insert(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, int(expert in self._high))

    def on_prefetch(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, 0)

    def on_hit(self, expert: int) -> tuple[int, int]:
        return self._stamp(expert, self._uses[expert] + (expert in self._high))

    def on_evict(self, expert: int) -> None:
        del self._uses[expert]
