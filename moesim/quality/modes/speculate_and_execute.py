"""Speculate and execute (Speculating Experts, arXiv 2603.19289, §3), closed loop.

    first layer:     the true router decides
    layer l+1 >= n:  the ids and weights that layer l+1's own router makes of the prediction at layer l are executed,
                     nothing is checked; n is `first_layer`, `last_layer` ends the stretch (both by index)

The prediction is made from the states that speculation has led to, and its default vectors from the ids and weights
that were executed, so that errors compound as they do in decoding. A token's execution depends on its own states alone:
a block may be one forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.foresight import Foresight
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.quality.router_rule import choose
from moesim.record.moe_layers import MoeLayer


class SpeculateAndExecute(Mode):
    """Execute the experts that were foreseen one layer earlier.

    Raises:
        InputError: the stretch of layers is not one of the model's.
    """

    name = "speculate-and-execute"
    reads_residual = True

    def __init__(
        self, layers: Sequence[MoeLayer], foresight: Foresight, first_layer: int = 1, last_layer: int | None = None
    ) -> None:
        last = len(layers) - 1 if last_layer is None else last_layer
        if not 1 <= first_layer <= last < len(layers):
            raise InputError(
                f"{self.name}: layers {first_layer} to {last}: of {len(layers)} MoE layers, 1 to {len(layers) - 1} "
                "can be speculated"
            )
        self._layers, self._foresight = layers, foresight
        self._first, self._last = first_layer, last
        self._foreseen: torch.Tensor | None = None
        self.predictor = foresight.name

    @property
    def parameters(self) -> dict[str, Any]:
        """The stretch of speculated layers."""
        return {"first_layer": self._first, "last_layer": self._last, "loop": "closed"}

    @property
    def variant(self) -> dict[str, Any]:
        """The ends that are not the defaults."""
        found = {} if self._first == 1 else {"first_layer": self._first}
        return found if self._last == len(self._layers) - 1 else {**found, "last_layer": self._last}

    def execute(self, event: Event) -> Execution:
        """The foreseen choice in the stretch, the true one elsewhere."""
        experts, weights = event.experts, event.weights
        if self._first <= event.index <= self._last:
            assert self._foreseen is not None, "layers come in order, and the first is not speculated"
            experts, weights = choose(self._layers[event.index], self._foreseen)
        if self._first <= event.index + 1 <= self._last:
            self._foreseen = self._foresight.logits(event.index + 1, event.executing(experts, weights))
        return Execution(experts, weights)
