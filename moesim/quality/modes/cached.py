"""What modes with a simulated cache have in common: one pool per lane, fed by predictions, and nothing fetched again.

    first layer:    what the router chose is brought in and executed: nothing foresees it
    other layers:   what is resident is executed; how the rest is made up for is the mode's own rule
    after each:     the predicted top-k of the next layer is brought in, the likeliest first, LRU out

The prediction is made from the states that the mode has led to (closed loop), with the router's own ids and weights for
d_l. The pool starts empty (full, if there is a slot for every expert) and is kept from block to block of a lane;
prefill streams through buffers of its own and leaves it alone. Tokens must come in order, one step at a time.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.foresight import Foresight
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.quality.resident_pool import ResidentPool, slots_of
from moesim.quality.router_rule import choose
from moesim.record.moe_layers import MoeLayer


class Pools:
    """One pool per lane.

    Raises:
        InputError: fewer slots than one token's experts.
    """

    def __init__(self, layers: Sequence[MoeLayer], cache_fraction: float) -> None:
        self._layers, self._fraction = layers, cache_fraction
        layout = layers[0].layout
        if slots_of(cache_fraction, len(layers), layout.n_experts) < layout.top_k:
            raise InputError(
                f"cache {cache_fraction:g} of {len(layers)} layers of {layout.n_experts} experts is fewer slots than "
                f"the model's top-k {layout.top_k}"
            )
        self.of_lane: list[ResidentPool] = []

    def begin(self, lanes: int) -> None:
        """Empty pools for `lanes` sequences side by side."""
        layers, experts = len(self._layers), self._layers[0].layout.n_experts
        slots = slots_of(self._fraction, layers, experts)
        self.of_lane = [ResidentPool(slots, layers, experts) for _ in range(lanes)]

    def resident(self, layer: int) -> torch.Tensor:
        """[lanes, experts] bool, on the CPU: who of a layer is resident."""
        found = torch.zeros(len(self.of_lane), self._layers[0].layout.n_experts, dtype=torch.bool)
        for lane, pool in enumerate(self.of_lane):
            found[lane, pool.residents(layer)] = True
        return found


def heaviest_first(experts: torch.Tensor, weights: torch.Tensor) -> list[list[int]]:
    """The ids [N, K] as lists, by falling gate weight, without dropped ones."""
    order = weights.float().sort(dim=-1, descending=True, stable=True).indices
    return [[expert for expert in row if expert >= 0] for row in experts.gather(-1, order).tolist()]


class CachedMode(Mode):
    """Executes what is resident; `missing` says what becomes of the rest."""

    stepped = True
    reads_residual = True

    def __init__(self, layers: Sequence[MoeLayer], foresight: Foresight, cache_fraction: float) -> None:
        self._layers, self._foresight = layers, foresight
        self._pools = Pools(layers, cache_fraction)
        self.predictor = foresight.name
        self.cache_fraction = cache_fraction

    @property
    def parameters(self) -> dict[str, Any]:
        """How residency evolves."""
        return {"evict": "lru", "layer0": "fetch"}

    def begin(self, lanes: int) -> None:
        """Empty pools."""
        super().begin(lanes)
        self._pools.begin(lanes)

    def execute(self, event: Event) -> Execution:
        """What is resident, with what `missing` makes of the rest."""
        layer, last = event.index, len(self._layers) - 1
        chosen = heaviest_first(event.experts, event.weights)
        executed = torch.zeros(len(chosen), self._layers[0].layout.n_experts, dtype=torch.bool)
        wanted: list[list[int]] = []
        if layer < last:
            foreseen = choose(self._layers[layer + 1], self._foresight.logits(layer + 1, event))
            wanted = heaviest_first(*foreseen)
        # A substitute must be resident when its event begins, before this event's prefetches evict it.
        resident = self._pools.resident(layer)
        for lane, pool in enumerate(self._pools.of_lane):
            executed[lane, pool.event(layer, chosen[lane], fetch=layer == 0)] = True
            if wanted:
                pool.prefetch(layer + 1, wanted[lane])
            pool.finish(layer)
        present = executed.to(event.experts.device).gather(-1, event.experts.clamp(min=0)) & (event.experts >= 0)
        self.tally(event, present)
        return self.missing(event, present, resident)

    @abstractmethod
    def missing(self, event: Event, present: torch.Tensor, resident: torch.Tensor) -> Execution:
        """The execution of an event of which `present` [N, K] are executed and `resident` [N, experts] could be."""
