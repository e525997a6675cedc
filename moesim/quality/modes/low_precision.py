"""Low precision (HOBBIT, arXiv 2411.01433): some experts run rounded to few bits, the lightest not at all.

    sorted by gate weight, heaviest first, with the weights G of the token's experts scaled to sum to 1:
    s_i = sum of G_j over the heavier ones;  s_i <= `high`: full precision,  s_i <= `low`: rounded,  else: skipped
    when=missing:  the rule holds for experts that are not resident (HOBBIT's own); residents run in full precision,
                   what is fetched in full enters the pool (LRU, no prefetch), rounded copies are not kept
    when=always:   the rule holds for every expert, and no cache is needed: what the thresholds themselves cost

high=-1 and low=1 with when=always rounds every expert: the cost of plain quantisation. The paper keeps a pool of low
copies too; that changes copies, not outputs. Rounding: 2^bits even levels between least and largest of each group of
32 neighbours along the last axis of a weight matrix. With when=always a block may be one forward pass.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.modes.cached import Pools
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.rounded_experts import RoundedExperts

GROUP = 32


def rounded_by_layer(layers: Sequence[MoeLayer], bits: int) -> list[RoundedExperts]:
    """The experts of each layer, rounded: as much memory again as all of them take."""
    return [RoundedExperts([layer], bits, GROUP) for layer in layers]


class LowPrecision(Mode):
    """Light experts run rounded. `cache_fraction` None: the rule holds for all, resident or not.

    `rounded` is what `rounded_by_layer` made for these layers and bits, so that modes can share it.

    Raises:
        InputError: the thresholds do not ascend.
    """

    name = "low-precision"

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        cache_fraction: float | None,
        *,
        bits: int = 4,
        high: float = 0.6,
        low: float = 0.9,
        rounded: Sequence[RoundedExperts] | None = None,
    ) -> None:
        if high > low:
            raise InputError(f"{self.name}: thresholds high={high:g} and low={low:g}: high is at most low")
        self._layers, self._bits, self._high, self._low = layers, bits, high, low
        self._rounded = rounded_by_layer(layers, bits) if rounded is None else rounded
        self._pools = None if cache_fraction is None else Pools(layers, cache_fraction)
        self.cache_fraction = cache_fraction
        self.stepped = cache_fraction is not None

    @property
    def parameters(self) -> dict[str, Any]:
        """Bits, thresholds, and to whom they apply."""
        return {
            "bits": self._bits, "group": GROUP, "high": self._high, "low": self._low,
            "when": "always" if self._pools is None else "missing",
        }

    @property
    def variant(self) -> dict[str, Any]:
        """What differs from HOBBIT's int4 at 0.6 and 0.9 for missing experts."""
        defaults = {"bits": 4, "group": GROUP, "high": 0.6, "low": 0.9, "when": "missing"}
        return {key: value for key, value in self.parameters.items() if value != defaults[key]}

    def begin(self, lanes: int) -> None:
        """Empty pools, where there are any."""
        super().begin(lanes)
        if self._pools is not None:
            self._pools.begin(lanes)

    def execute(self, event: Event) -> Execution:
        """Full weights for some, rounded experts for others, nothing for the rest."""
        weights = event.weights.float()
        sorted_weights, order = weights.sort(dim=-1, descending=True, stable=True)
        share = sorted_weights / sorted_weights.sum(-1, keepdim=True).clamp(min=1e-12)
        heavier = (share.cumsum(-1) - share).gather(-1, order.argsort(-1))
        full, rounded = heavier <= self._high, (heavier > self._high) & (heavier <= self._low)
        if self._pools is not None:
            ids = event.experts.clamp(min=0)
            resident = self._pools.resident(event.index).to(ids.device).gather(-1, ids)
            full, rounded = full | resident, rounded & ~resident
            runs = full & (event.experts >= 0)
            ranked = event.experts.gather(-1, order).masked_fill(~runs.gather(-1, order), -1).tolist()
            for pool, row in zip(self._pools.of_lane, ranked, strict=True):
                pool.event(event.index, [expert for expert in row if expert >= 0], fetch=True)
                pool.finish(event.index)
        self.tally(event, full)
        if not rounded.any():
            return Execution(event.experts, weights * full)
        added = partial(self._rounded_output, event.experts, (weights * rounded).to(event.weights.dtype))
        return Execution(event.experts, weights * full, added)

    def _rounded_output(
        self, experts: torch.Tensor, weights: torch.Tensor, index: int, hidden: torch.Tensor
    ) -> torch.Tensor:
        module = self._layers[index].experts
        with self._rounded[index].in_place():
            # `forward`, not the module: the call must not run the hooks again.
            output: torch.Tensor = module.forward(hidden, experts, weights)
        return output
