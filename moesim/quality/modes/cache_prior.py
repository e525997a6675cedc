"""Cache-prior (Mixture of Cache-Conditional Experts, arXiv 2412.00099).

    select the top-k of  z' = z + λ · Δ · m
    m = 1 for experts that are resident or among the true top J, Δ = running mean over tokens of (max z - min z),
    per layer; the weights of the selected come from the original z, by the router's own rule

What leans is a constant less than z', which no softmax sees: here z' = z - λ · Δ · (1 - m), and the router's own rule
selects from it, so that groups and correction biases hold as they do in the model.

What is selected and missing is fetched, LRU out: the pool is that of on-demand caching, without prefetch, and every
selected expert runs. J is 1 (Mixtral, Phi) or 2 (Qwen, DeepSeek) in the paper; quality falls past λ of about 0.8. The
mean includes the present token. It needs tokens in order, one step at a time; each lane has its own mean and pool.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.modes.cached import Pools, heaviest_first
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.quality.router_rule import check_gate_weights, choose, gate_weights
from moesim.record.moe_layers import MoeLayer


class CachePrior(Mode):
    """Routing that leans towards what is resident. `strength` is the paper's λ, `keep` its J.

    Raises:
        InputError: a router whose weights for other experts are unknown; too few slots; λ or J out of range.
    """

    name = "cache-prior"
    stepped = True

    def __init__(
        self, layers: Sequence[MoeLayer], cache_fraction: float, strength: float = 0.5, keep: int = 2
    ) -> None:
        check_gate_weights(layers)
        if strength < 0 or not 0 <= keep <= layers[0].layout.top_k:
            raise InputError(f"{self.name}: strength={strength:g}, keep={keep}: λ is at least 0, J from 0 to the top-k")
        self._layers = layers
        self._strength, self._keep = strength, keep
        self._pools = Pools(layers, cache_fraction)
        self.cache_fraction = cache_fraction
        self._range = torch.zeros(0)
        self._tokens = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """The paper's λ and J."""
        return {"evict": "lru", "strength": self._strength, "keep": self._keep}

    @property
    def variant(self) -> dict[str, Any]:
        """Always said: the paper has no single value of either."""
        return {"strength": self._strength, "keep": self._keep}

    def begin(self, lanes: int) -> None:
        """Empty pools, no token seen."""
        super().begin(lanes)
        self._pools.begin(lanes)
        self._range = torch.zeros(len(self._layers), lanes, dtype=torch.float64)
        self._tokens = 0

    def execute(self, event: Event) -> Execution:
        """The top-k of the shifted logits, with weights of the original ones."""
        layer, logits = event.index, event.logits.float()
        self._tokens += layer == 0
        self._range[layer] += (logits.amax(-1) - logits.amin(-1)).double().cpu()
        mean = (self._range[layer] / self._tokens).float().to(logits.device)
        favoured = self._pools.resident(layer).to(logits.device)
        best = event.experts.gather(-1, event.weights.float().topk(self._keep, dim=-1).indices)
        favoured = favoured.scatter(-1, best, value=True)
        selected, _ = choose(self._layers[layer], logits - self._strength * mean[:, None] * ~favoured)
        # Where the selection is the router's own, so are its order and weights, to the last bit.
        same = (selected.sort(-1).values == event.experts.sort(-1).values).all(-1, keepdim=True)
        weights = torch.where(same, event.weights.float(), gate_weights(self._layers[layer], logits, selected))
        experts = torch.where(same, event.experts, selected)
        for pool, chosen in zip(self._pools.of_lane, heaviest_first(experts, weights), strict=True):
            pool.event(layer, chosen, fetch=True)
            pool.finish(layer)
        return Execution(experts, weights)
