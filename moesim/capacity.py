"""The pools of slots that a run's memory for experts is divided into."""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.trace import Trace


@dataclass(frozen=True)
class Capacity:
    """Slots of one pool, or of each layer's. `workspace`: nothing survives its event (cache fraction 0)."""

    slots: int
    per_layer: bool = False
    workspace: bool = False
    everything: bool = False
    """All experts are resident before the first event (the all-resident bound)."""
    low_slots: int = 0
    """Beside the slots of every pool: slots for experts in low precision."""
    top_share: float = 1.0
    """Of an expert's bytes, what its slot holds; the rest is copied at every use (`moesim/parts.py`)."""
    bottom_slots: int = 0
    """Beside all pools: slots for that rest, none of which outlives the layer it was copied for."""
    of_layers: tuple[int, ...] = ()
    """With `per_layer`: each layer's own number of slots, where they differ; `slots` is the smallest of them."""

    @classmethod
    def of_each_layer(cls, slots: Sequence[int]) -> "Capacity":
        """A pool for each layer, of these slots."""
        return cls(min(slots), per_layer=True, of_layers=tuple(slots))

    def slots_of(self, pool: int) -> int:
        """The slots of one pool, without those of low precision."""
        return self.of_layers[pool] if self.of_layers else self.slots

    def total(self, layers: int) -> int:
        """The slots of all pools, without those of low precision."""
        if self.of_layers:
            return sum(self.of_layers)
        return self.slots * (layers if self.per_layer else 1)

    def total_low(self, layers: int) -> int:
        """The slots for low precision of all pools."""
        return self.low_slots * (layers if self.per_layer else 1)


@dataclass(frozen=True)
class Memory:
    """What is there to divide, in slots of the model's own precision, and what may be known in dividing it."""

    slots: int
    layers: int
    experts: int
    """Of a layer."""
    top_k: int
    expert_bytes: int
    low_bytes: int
    """Bytes of an expert in low precision; those of the model's own where a policy has no other."""
    trace: Trace
    per_layer: bool = False
    """The run asks for a pool for each layer."""
    hidden_experts: float = 0.0
    """How many experts the link copies while a layer of one token runs."""
