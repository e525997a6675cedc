"""What modes share that choose a token's experts anew, from its router's logits and from what is resident.

Whoever is selected and missing is fetched, LRU out: one pool per lane, without prefetch, and every selected expert
runs, with the weight that the router's own rule gives it among the selected. Prefill leaves the pool alone. Tokens must
come in order, one step at a time. Each mode is the policy of the same name with evict=lru, whose defaults it takes.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.modes.cached import Pools, heaviest_first
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.quality.router_rule import check_gate_weights, gate_weights
from moesim.record.moe_layers import MoeLayer


class ReRouted(Mode):
    """`selected` says who runs; `keep` is how many of the router's heaviest run in any case, the paper's J.

    Raises:
        InputError: a router whose weights for other experts are unknown; too few slots; J beyond the top-k.
    """

    stepped = True

    def __init__(self, layers: Sequence[MoeLayer], cache_fraction: float, keep: int) -> None:
        check_gate_weights(layers)
        if not 0 <= keep <= layers[0].layout.top_k:
            raise InputError(f"{self.name}: keep={keep}: from 0 to the model's top-k {layers[0].layout.top_k}")
        self._layers, self._keep = layers, keep
        self._pools = Pools(layers, cache_fraction)
        self.cache_fraction = cache_fraction

    @property
    def parameters(self) -> dict[str, Any]:
        """The eviction under it, and the paper's J."""
        return {"evict": "lru", "keep": self._keep}

    def begin(self, lanes: int) -> None:
        """Empty pools."""
        super().begin(lanes)
        self._pools.begin(lanes)

    def execute(self, event: Event) -> Execution:
        """The selected experts, with the weights that the original logits give them."""
        layer, logits = event.index, event.logits.float()
        selected = self.selected(event, self._pools.resident(layer).to(logits.device))
        # Where the selection is the router's own, so are its order and weights, to the last bit.
        same = (selected.sort(-1).values == event.experts.sort(-1).values).all(-1, keepdim=True)
        weights = torch.where(same, event.weights.float(), gate_weights(self._layers[layer], logits, selected))
        experts = torch.where(same, event.experts, selected)
        for pool, chosen in zip(self._pools.of_lane, heaviest_first(experts, weights), strict=True):
            pool.event(layer, chosen, fetch=True)
            pool.finish(layer)
        return Execution(experts, weights)

    @abstractmethod
    def selected(self, event: Event, resident: torch.Tensor) -> torch.Tensor:
        """Ids [N, top_k], in any order; `resident` [N, experts] is the state when the event begins."""
