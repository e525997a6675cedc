"""Residual stream and default vectors (arXiv 2603.19289, §3): the seed paper's predictor.

    p_{l+1} = softmax(W_{l+1} · q_l)
    q_l     = norm_{l+1}(r_l + d_l)
    d_l     = sum over the experts e chosen at layer l of g_e · d_{l,e}

r_l is the residual stream after layer l's attention, g_e the gate weight, d_{l,e} the default vector: the mean output
of expert e over the tokens routed to it (default_vectors.py). Layer l+1's attention is ignored. Known when router l has
run. The paper's models have no shared experts and no factor on the block's output (Granite); d_l knows neither. In the
paper's code the experts of d_l are the speculated ones; whoever decodes so passes a state that holds them.
"""

from collections.abc import Sequence

import torch

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.predictor import AFTER_THE_ROUTER, LayerState, Predictor, router_probabilities
from moesim.trace import Availability


class ResidualDefaultVectors(Predictor):
    """The residual stream plus what the chosen experts are expected to add, given to the next norm and router.

    `vectors` is [L, experts, hidden].

    Raises:
        InputError: the vectors are those of another number of layers.
    """

    name = "residual+default-vectors"
    availability = Availability(
        layer_offset=1,
        point=AFTER_THE_ROUTER,
        description="layer l's norm and router on the residual stream after layer l-1's attention plus the default "
        "vectors of the experts chosen there, by gate weight (arXiv 2603.19289)",
    )

    def __init__(self, layers: Sequence[MoeLayer], vectors: torch.Tensor) -> None:
        if len(vectors) != len(layers):
            raise InputError(f"default vectors of {len(vectors)} layers: the model has {len(layers)} MoE layers")
        self._layers = layers
        self._vectors = vectors

    def query(self, target: int, state: LayerState) -> torch.Tensor:
        """q_l [N, hidden], with l = target - 1."""
        chosen = self._vectors[target - 1][state.experts]  # [N, top_k, hidden]
        added = (state.weights.float()[..., None] * chosen).sum(1)
        query: torch.Tensor = self._layers[target].norm((state.residual.float() + added).to(state.residual.dtype))
        return query

    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        return router_probabilities(self._layers[target], self.query(target, state))
