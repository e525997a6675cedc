"""One pool that all layers share; a run's `per_layer` splits it evenly instead."""

from moesim.capacity import Capacity, Memory
from moesim.policies.registry import register
from moesim.policies.roles import Budget


@register("budget", "shared")
class Shared(Budget):
    """Any expert in any slot."""

    def divide(self, memory: Memory) -> Capacity:
        if memory.per_layer:
            return Capacity(memory.slots // memory.layers, per_layer=True)
        return Capacity(memory.slots)
