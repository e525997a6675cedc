"""A pool for each layer: an even share, or shares that are given.

    per-layer                       the same for every layer; what does not divide evenly is not used
    per-layer[shares=2/1/1/1]       in these proportions, one number for each layer

The proportions are rounded down to whole slots; a layer's share may not be less than one token's experts, nor more
than there are experts in it: what is above that is not used.
"""

from moesim.capacity import Capacity, Memory
from moesim.errors import ConfigError
from moesim.policies.registry import register
from moesim.policies.roles import Budget


@register("budget", "per-layer")
class PerLayer(Budget):
    """Slots that only one layer's experts may take."""

    def __init__(self, shares: str = "") -> None:
        try:
            self._shares = [float(each) for each in shares.split("/")] if shares else []
        except ValueError:
            self._shares = [0.0]
        if any(not 0 < share <= 1e9 for share in self._shares):
            raise ConfigError(f"policy: per-layer[shares={shares}]: expected numbers above 0, such as 2/1/1, up to 1e9")

    def divide(self, memory: Memory) -> Capacity:
        if not self._shares:
            return Capacity(memory.slots // memory.layers, per_layer=True)
        if len(self._shares) != memory.layers:
            raise ConfigError(
                f"policy: per-layer[shares]: {len(self._shares)} shares for {memory.layers} layers: give one for each"
            )
        whole = sum(self._shares)
        return Capacity.of_each_layer(
            [min(memory.experts, int(memory.slots * share / whole + 1e-9)) for share in self._shares]
        )
