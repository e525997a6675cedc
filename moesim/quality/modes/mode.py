"""What every mode is: a rule from what the true router says at a layer to the experts that are executed there."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from moesim.record.capture import Captured

StandIn = Callable[[int, torch.Tensor], torch.Tensor]
"""From a layer's index and the input of its experts [N, hidden] to what is added to their output [N, hidden]."""


@dataclass(frozen=True)
class Event:
    """N tokens at one MoE layer, by its index, before its experts run.

    residual      [N, hidden]  residual stream before the norm that feeds the router; None unless the mode reads it
    router_input  [N, hidden]
    logits        [N, experts] the true router's logits
    experts       [N, top_k]   the true router's choice, in its own order; -1 where a token was dropped
    weights       [N, top_k]   its gate weights
    """

    index: int
    residual: torch.Tensor | None
    router_input: torch.Tensor
    logits: torch.Tensor
    experts: torch.Tensor
    weights: torch.Tensor

    def executing(self, experts: torch.Tensor, weights: torch.Tensor) -> "Event":
        """The same tokens with other experts executed: what a prediction in closed loop is made from."""
        return replace(self, experts=experts, weights=weights)


@dataclass(frozen=True)
class Execution:
    """What runs in place of the router's choice: experts [N, K] with weights [N, K], 0 where one is not executed.

    `added`, where given, makes what stands in for experts that are not executed truly.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    added: StandIn | None = None


class Mode(ABC):
    """A way of executing experts. Made anew for every measurement: modes with a cache have memory.

    `name` is the policy of moesim that executes so, where there is one. `parameters` say exactly what was measured;
    `variant` are those of them that differ from the mode's defaults, as one would write them behind the policy's name.
    """

    name: str
    stepped = False
    """True: what a token executes depends on the tokens before it, so the text is decoded token by token, in order.
    False: it depends on the token's own states alone, and a block may be one forward pass."""
    reads_residual = False
    reads_true_states = False
    """True: `see` is called with what the true model's routers saw, before the same tokens are run."""
    predictor: str | None = None
    cache_fraction: float | None = None
    _weight: torch.Tensor | None = None
    _weight_executed: torch.Tensor | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything else that the outcome depends on."""
        return {}

    @property
    def variant(self) -> dict[str, Any]:
        """The parameters that differ from the defaults."""
        return {}

    @property
    def weight_executed(self) -> float | None:
        """Share of the chosen gate weight that ran in full precision, over all tokens; None where all of it does."""
        if self._weight is None or self._weight_executed is None:
            return None
        return min(1.0, (self._weight_executed / self._weight).item())

    def begin(self, lanes: int) -> None:
        """The text begins: forget everything. `lanes` sequences will be decoded side by side, each with its memory."""
        self._weight = self._weight_executed = None

    def see(self, captured: "Captured") -> None:
        """What the true model's routers saw in the tokens that come next."""

    @abstractmethod
    def execute(self, event: Event) -> Execution:
        """What is executed. Layers come in order; the rows are the same tokens from layer to layer."""

    def tally(self, event: Event, executed: torch.Tensor) -> None:
        """Count the gate weight of the choices that `executed` [N, K] marks. Waits for no device."""
        weight, full = event.weights.double().sum(), (event.weights * executed).double().sum()
        self._weight = weight if self._weight is None else self._weight + weight
        self._weight_executed = full if self._weight_executed is None else self._weight_executed + full
