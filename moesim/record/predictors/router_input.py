"""Router input (the baseline of arXiv 2603.19289, §3; the next-gate speculation of arXiv 2312.17238).

    p_{l+1} = softmax(W_{l+1} · x_l),  x_l the router's input at layer l, W_{l+1} the router of layer l+1

Layer l's norm has been applied, layer l+1's has not. Known when the norm that feeds router l has run.
"""

from collections.abc import Sequence

import torch

from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.predictor import AFTER_THE_NORM, LayerState, Predictor, router_probabilities
from moesim.trace import Availability


class RouterInput(Predictor):
    """Layer l's router input, given to the router of layer l+1."""

    name = "router-input"
    availability = Availability(
        layer_offset=1,
        point=AFTER_THE_NORM,
        description="layer l-1's router input given to layer l's own router (the baseline of arXiv 2603.19289)",
    )

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._layers = layers

    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        return router_probabilities(self._layers[target], state.router_input)
