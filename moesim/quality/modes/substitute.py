"""Substitute (SpecMD, arXiv 2602.03921, miss axis): another resident expert runs in place of a missing one.

    in order of falling gate weight, a missing expert is replaced by the resident expert of the layer that the true
    router scores highest among those that neither were chosen nor replace another
    weight=original:  the substitute runs with the weight of whom it replaces
    weight=own:       all that run get the weights that the router's rule makes of their own scores

Who is resident is what was resident when the event began. Where no resident is left, the expert is dropped. The first
layer is fetched. How residency evolves is told in cached.py.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from moesim.quality.foresight import Foresight
from moesim.quality.modes.cached import CachedMode
from moesim.quality.modes.mode import Event, Execution
from moesim.quality.router_rule import check_gate_weights, gate_weights
from moesim.record.moe_layers import MoeLayer


class Substitute(CachedMode):
    """The best-scored resident runs in place of whatever is missing.

    Raises:
        InputError: too few slots; own weights are asked for and the router's rule for them is unknown.
    """

    name = "substitute"

    def __init__(
        self, layers: Sequence[MoeLayer], foresight: Foresight, cache_fraction: float,
        weight: Literal["original", "own"] = "original",
    ) -> None:
        super().__init__(layers, foresight, cache_fraction)
        if weight == "own":
            check_gate_weights(layers)
        self._gates = weight

    @property
    def parameters(self) -> dict[str, Any]:
        """With what weights substitutes run."""
        return {**super().parameters, "weight": self._gates}

    @property
    def variant(self) -> dict[str, Any]:
        """The weights, if not the original ones."""
        return {} if self._gates == "original" else {"weight": self._gates}

    def missing(self, event: Event, present: torch.Tensor, resident: torch.Tensor) -> Execution:
        """Substitutes in the places of the missing, as far as there are any."""
        if present.all():
            return Execution(event.experts, event.weights)
        free = resident.to(event.logits.device).scatter(-1, event.experts.clamp(min=0), value=False)
        scores = event.logits.float().masked_fill(~free, float("-inf"))
        ranked = scores.topk(event.experts.shape[-1], dim=-1)
        # The n-th heaviest of the missing gets the n-th best of the free residents.
        weights = event.weights.float().masked_fill(present, float("-inf"))
        place = weights.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        substitute = ranked.indices.gather(-1, place)
        found = ranked.values.gather(-1, place) > float("-inf")
        experts = torch.where(present | ~found, event.experts, substitute)
        runs = present | found
        if self._gates == "original":
            return Execution(experts, event.weights * runs)
        own = gate_weights(self._layers[event.index], event.logits, experts)
        changed = (~present).any(-1, keepdim=True)
        return Execution(experts, torch.where(changed, own, event.weights.float()) * runs)
