"""Random replacement, seeded: whoever may go, goes with the same probability.

    victim: drawn evenly from the residents that are not pinned

A random sort key would not do: experts that once drew a high key would stay, and newcomers would go again and again.
"""

from collections.abc import Sequence
from random import Random

from moesim.policies.registry import register
from moesim.policies.roles import Evict


@register("evict", "random")
class RandomChoice(Evict):
    """No key: a draw at each eviction."""

    draws = True

    def __init__(self, seed: int = 0) -> None:
        self._random = Random(seed)

    def on_hit(self, expert: int) -> int:
        return 0

    on_insert = on_hit

    def draw(self, residents: Sequence[int], pinned: set[int]) -> int | None:
        for _ in range(8):  # most are not pinned: a few throws find one
            expert = residents[int(self._random.random() * len(residents))]
            if expert not in pinned:
                return expert
        free = [expert for expert in residents if expert not in pinned]
        return free[int(self._random.random() * len(free))] if free else None
