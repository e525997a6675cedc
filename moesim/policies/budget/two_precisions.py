"""Two pools by precision, in given shares of the bytes (HOBBIT, arXiv 2411.01433).

    low pool:  as many slots of low precision as `low` of the bytes hold
    high pool: as many slots of the model's precision as the rest holds

The paper keeps its precisions apart and does not say how large each part is; here the low pool has a quarter of the
bytes unless it is given. A run's `per_layer` gives every layer both pools.
"""

from dataclasses import replace

from moesim.capacity import Capacity, Memory
from moesim.errors import ConfigError
from moesim.policies.registry import register
from moesim.policies.roles import Budget


@register("budget", "two-precisions")
class TwoPrecisions(Budget):
    """`low`: the low pool's share of the bytes."""

    keeps_low = True

    def __init__(self, low: float = 0.25) -> None:
        if not 0 < low < 1:
            raise ConfigError(f"policy: two-precisions[low={low:g}]: expected a share between 0 and 1")
        self._low = low

    def divide(self, memory: Memory) -> Capacity:
        if memory.per_layer:
            each = self.divide(replace(memory, slots=memory.slots // memory.layers, per_layer=False))
            return replace(each, per_layer=True)
        all_bytes = memory.slots * memory.expert_bytes
        # A share written as a decimal must not lose a slot to binary rounding.
        low_slots = int(all_bytes * self._low / memory.low_bytes + 1e-9)
        return Capacity((all_bytes - low_slots * memory.low_bytes) // memory.expert_bytes, low_slots=low_slots)
