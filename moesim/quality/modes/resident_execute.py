"""Resident-execute (press reading of Speculating Experts, arXiv 2603.19289).

    output = sum over resident e of g_e · expert_e(x)  +  sum over missing e of g_e · d_{l,e}

d_{l,e} is the default vector: the mean output of expert e over the tokens routed to it, gathered on other text. Ids and
weights are the true router's. How residency evolves is told in cached.py; the policy of the same name replays it.
"""

from collections.abc import Sequence
from functools import partial

import torch

from moesim.errors import InputError
from moesim.quality.foresight import Foresight
from moesim.quality.modes.cached import CachedMode
from moesim.quality.modes.mode import Event, Execution
from moesim.record.moe_layers import MoeLayer


class ResidentExecute(CachedMode):
    """A default vector stands in for whatever is missing. `vectors` is [L, experts, hidden].

    Raises:
        InputError: there are none, or of another number of layers; too few slots.
    """

    name = "resident-execute"

    def __init__(
        self, layers: Sequence[MoeLayer], foresight: Foresight, cache_fraction: float, vectors: torch.Tensor | None
    ) -> None:
        if vectors is None:
            raise InputError("it needs what `moesim fit default-vectors` writes: give it as --fitted FILE")
        if len(vectors) != len(layers):
            raise InputError(f"default vectors of {len(vectors)} layers: the model has {len(layers)} MoE layers")
        super().__init__(layers, foresight, cache_fraction)
        self._vectors = vectors

    def missing(self, event: Event, present: torch.Tensor, resident: torch.Tensor) -> Execution:
        """Weights of the present, default vectors for the rest."""
        vectors = self._vectors[event.index][event.experts.clamp(min=0)]
        added = ((event.weights * ~present).float()[..., None] * vectors.float()).sum(1)
        return Execution(event.experts, event.weights * present, partial(_as_they_are, added))


def _as_they_are(added: torch.Tensor, index: int, hidden: torch.Tensor) -> torch.Tensor:
    return added
