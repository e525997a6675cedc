"""What every predictor that reads the model's own states is: a rule from the state at one layer to the experts of one.

A rule is asked for one layer at a time, so the same one serves a recording, where all true states lie before it, and
closed-loop decoding, where the states are those that its own earlier answers led to.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch

from moesim.record.capture import Captured
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.fitted import Fitted
from moesim.trace import Availability

BEFORE_ALL_LAYERS: Final = "before the pass begins"
BEFORE_ATTENTION: Final = "before attention"
AFTER_ATTENTION: Final = "after attention, before the experts"
AFTER_THE_NORM: Final = "after the norm that feeds the router"
AFTER_THE_ROUTER: Final = "after the router"


@dataclass(frozen=True)
class LayerState:
    """What N tokens have at one MoE layer; the fields are those of `moesim.record.capture.Captured` at that layer."""

    residual: torch.Tensor
    router_input: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor
    attention_input: torch.Tensor | None = None


class Predictor(ABC):
    """Foresees the experts of MoE layer `target` from the state at layer target - `availability.layer_offset`."""

    name: str
    availability: Availability
    reads_attention_input = False
    """Whether it needs `LayerState.attention_input`."""
    fitted: tuple[Fitted, ...] = ()
    """The files that it was made of."""

    @abstractmethod
    def probabilities(self, target: int, state: LayerState) -> torch.Tensor:
        """The predicted router probabilities [N, experts], float32, of the MoE layer with index `target`."""


def foresee(predictor: Predictor, captured: Captured) -> torch.Tensor:
    """The predicted probabilities [L, N, experts], float32, from true states; zero where nothing can be foreseen."""
    offset = predictor.availability.layer_offset
    predicted = torch.zeros_like(captured.probabilities)
    for target in range(offset, len(predicted)):
        predicted[target] = predictor.probabilities(target, layer_state(captured, target - offset))
    return predicted


def layer_state(captured: Captured, index: int) -> LayerState:
    """What was captured at one layer."""
    inputs = captured.attention_input
    return LayerState(
        residual=captured.residual[index],
        router_input=captured.router_input[index],
        weights=captured.weights[index],
        experts=captured.experts[index],
        attention_input=None if inputs is None else inputs[index],
    )


def router_probabilities(layer: MoeLayer, query: torch.Tensor) -> torch.Tensor:
    """What the layer's own router makes of `query` [N, hidden]: its score of every expert [N, experts], float32."""
    layout = layer.layout
    return layout.scores(layout.logits_of(layer.router, query, layer.router(query)))
