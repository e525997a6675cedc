"""Lowest router score first (an eviction axis of SpecMD, arXiv 2602.03921).

    on use: remember the gate weight that the router gave the expert, as the model used it
    victim: the smallest weight; ties go to the least recently used

The paper does not say which score is meant when the expert is not being used; here it is the one of its last use. A
prefetched expert that no event has used yet has no score and counts as 0, as does one that a re-routing rule
executes though the router did not choose it. For several tokens the weights of an expert are added.
"""

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "score")
class Score(Evict):
    """Key: (gate weight at the last use, time of last use)."""

    def __init__(self) -> None:
        self._clock = 0
        self._weight: dict[int, float] = {}

    def prepare(self, layers: int, experts: int, slots: int, future: object) -> None:
        self._experts = experts

    def on_event(self, step: Step, layer: int) -> None:
        base = layer * self._experts
        self._weight = {}
        for token in step.gates(layer):
            for expert, weight in token:
                self._weight[base + expert] = self._weight.get(base + expert, 0.0) + weight

    def on_hit(self, expert: int) -> tuple[float, int]:
        self._clock += 1
        return self._weight.get(expert, 0.0), self._clock

    on_insert = on_hit

    def on_prefetch(self, expert: int) -> tuple[float, int]:
        self._clock += 1
        return 0.0, self._clock
