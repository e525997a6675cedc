"""Drop (SpecMD, arXiv 2602.03921, miss axis): a missing expert is left out, and nothing is fetched.

    output = sum over resident e of g_e · expert_e(x)
    renormalise:  the weights of the resident are scaled so that they sum to what the router gave the token in all

The paper leaves open whether weights are renormalised: both are variants here. A token of which nothing is resident
gets nothing from the routed experts. How residency evolves is told in cached.py.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.quality.foresight import Foresight
from moesim.quality.modes.cached import CachedMode
from moesim.quality.modes.mode import Event, Execution
from moesim.record.moe_layers import MoeLayer


class Drop(CachedMode):
    """Skip whatever is missing."""

    name = "drop"

    def __init__(
        self, layers: Sequence[MoeLayer], foresight: Foresight, cache_fraction: float, *, renormalise: bool = False
    ) -> None:
        super().__init__(layers, foresight, cache_fraction)
        self._renormalise = renormalise

    @property
    def parameters(self) -> dict[str, Any]:
        """With what weights the rest runs."""
        return {**super().parameters, "renormalise": self._renormalise}

    @property
    def variant(self) -> dict[str, Any]:
        """Renormalised or not."""
        return {"renormalise": True} if self._renormalise else {}

    def missing(self, event: Event, present: torch.Tensor, resident: torch.Tensor) -> Execution:
        """Weights of the present."""
        weights = event.weights.float() * present
        if self._renormalise:
            left = weights.sum(-1, keepdim=True)
            scaled = weights * (event.weights.float().sum(-1, keepdim=True) / left.clamp(min=1e-12))
            # Where all are present nothing is scaled, not even by a rounded 1.
            weights = torch.where(present.all(-1, keepdim=True), weights, scaled)
        return Execution(event.experts, weights)
