"""The residual stream, one or more layers ahead (arXiv 2603.19289, §3, without its default vectors; arXiv 2411.01433).

    p_{l+p} = softmax(W_{l+p} · norm_{l+p}(r_l)),  r_l the residual stream after layer l's attention, before its experts

p = 1 is the seed paper's query less d_l. p = 2 and 3 are the stacked gates of HOBBIT, which looks 1 to 3 layers ahead;
HOBBIT gives them the router's input, here the norm is the target's own. Known when layer l's attention has run.
"""

from collections.abc import Sequence

import torch

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.predictor import AFTER_ATTENTION, LayerState, Predictor, router_probabilities
from moesim.trace import Availability


class Residual(Predictor):
    """The residual stream after attention, given to the norm and the router of the layer `ahead` layers later.

    Raises:
        InputError: `ahead` is not a number of layers from 1 to the model's last.
    """

    def __init__(self, layers: Sequence[MoeLayer], ahead: int = 1) -> None:
        if not 1 <= ahead < len(layers):
            raise InputError(f"residual, {ahead} layers ahead: the model has {len(layers)} MoE layers")
        self._layers = layers
        self.name = "residual" if ahead == 1 else f"residual-{ahead}-ahead"
        self.availability = Availability(
            layer_offset=ahead,
            point=AFTER_ATTENTION,
            description=f"layer l's norm and router on the residual stream after layer l-{ahead}'s attention",
        )

    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        layer = self._layers[target]
        return router_probabilities(layer, layer.norm(state.residual))
