"""Predictors as a mode needs them: from the state at one layer to the logits of the next layer's router."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from moesim.quality.modes.mode import Event
from moesim.record.moe_layers import MoeLayer

if TYPE_CHECKING:
    from moesim.record.predictors.predictor import Predictor

# Far below any probability that decides a choice, and its logarithm is finite.
_LEAST = 1e-30


class Foresight(Protocol):
    """Foresees the router of a coming layer."""

    @property
    def name(self) -> str:
        """The predictor's name, as traces call it."""

    def logits(self, target: int, event: Event) -> torch.Tensor:
        """Logits [N, experts] of MoE layer `target` from the state at layer target - 1."""


class PredictorForesight:
    """A predictor of `moesim.record.predictors`, which one layer earlier foresees a router's scores."""

    def __init__(self, layers: Sequence[MoeLayer], predictor: "Predictor") -> None:
        self._layers, self._predictor = layers, predictor
        self.name = predictor.name

    def logits(self, target: int, event: Event) -> torch.Tensor:
        """The logits whose scores the predictor foresees."""
        from moesim.record.predictors.predictor import LayerState

        assert event.residual is not None, "modes that foresee read the residual stream"
        state = LayerState(
            residual=event.residual, router_input=event.router_input, weights=event.weights, experts=event.experts
        )
        scores = self._predictor.probabilities(target, state).clamp(min=_LEAST)
        if self._layers[target].layout.score_function == "sigmoid":
            return scores.clamp(max=1 - torch.finfo(torch.float32).eps).logit()
        return scores.log() if self._layers[target].layout.score_function == "softmax" else scores
