"""Speculate and execute from true states: open loop, for comparison.

    layer l+1 executes what is predicted for it from the states of the *true* model at layer l

This is what a replay of recorded predictions assumes. Errors do not reach the predictions, so the difference to
closed-loop speculation is what compounding costs. The true model runs first, over the same tokens.
"""

from collections.abc import Sequence
from typing import Any

from moesim.quality.foresight import Foresight
from moesim.quality.modes.mode import Event, Execution, Mode
from moesim.quality.router_rule import choose
from moesim.record.capture import Captured
from moesim.record.moe_layers import MoeLayer


class OpenLoop(Mode):
    """Execute the experts that are foreseen from true states."""

    name = "speculate-and-execute"
    reads_true_states = True

    def __init__(
        self, layers: Sequence[MoeLayer], foresight: Foresight, first_layer: int = 1, last_layer: int | None = None
    ) -> None:
        self._layers, self._foresight = layers, foresight
        self._first = first_layer
        self._last = len(layers) - 1 if last_layer is None else last_layer
        self._seen: Captured | None = None
        self.predictor = foresight.name

    @property
    def parameters(self) -> dict[str, Any]:
        """The stretch of speculated layers."""
        return {"first_layer": self._first, "last_layer": self._last, "loop": "open"}

    @property
    def variant(self) -> dict[str, Any]:
        """Open loop is never the default: decoding is closed."""
        return {"loop": "open"}

    def see(self, captured: Captured) -> None:
        """Keep the true states of the tokens to come."""
        self._seen = captured

    def execute(self, event: Event) -> Execution:
        """What is foreseen from the true states of the layer before."""
        if not self._first <= event.index <= self._last:
            return Execution(event.experts, event.weights)
        seen, before = self._seen, event.index - 1
        assert seen is not None, "the true model has run over these tokens"
        true = Event(
            before, seen.residual[before], seen.router_input[before], seen.logits[before], seen.experts[before],
            seen.weights[before],
        )
        return Execution(*choose(self._layers[event.index], self._foresight.logits(event.index, true)))
