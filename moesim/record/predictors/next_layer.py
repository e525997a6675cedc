"""The three predictors of arXiv 2603.19289, §3, by their names: router-input, residual, residual+default-vectors."""

from collections.abc import Sequence

import torch

from moesim.errors import InputError, nearest
from moesim.record.capture import Captured
from moesim.record.moe_layers import MoeLayer
from moesim.record.predictors.predictor import Predictor, foresee
from moesim.record.predictors.residual import Residual
from moesim.record.predictors.residual_default_vectors import ResidualDefaultVectors
from moesim.record.predictors.router_input import RouterInput

ROUTER_INPUT = RouterInput.name
RESIDUAL = "residual"
RESIDUAL_DEFAULT_VECTORS = ResidualDefaultVectors.name
PREDICTORS = (ROUTER_INPUT, RESIDUAL, RESIDUAL_DEFAULT_VECTORS)


@torch.no_grad()
def next_layer_probabilities(
    layers: Sequence[MoeLayer], captured: Captured, predictor: str, default_vectors: torch.Tensor | None = None
) -> torch.Tensor:
    """The predicted router probabilities [L, N, experts], float32, of layers 1 to L-1; layer 0, unforeseen, is zero.

    `default_vectors` is [L, experts, hidden]; only `residual+default-vectors` needs it.

    Raises:
        InputError: an unknown predictor, or one whose default vectors are missing.
    """
    return foresee(_by_name(layers, predictor, default_vectors), captured)


def _by_name(layers: Sequence[MoeLayer], name: str, default_vectors: torch.Tensor | None) -> Predictor:
    if name not in PREDICTORS:
        raise InputError(f"predictor {name!r} is unknown: {nearest(name, PREDICTORS)}")
    if name == ROUTER_INPUT:
        return RouterInput(layers)
    if name == RESIDUAL:
        return Residual(layers)
    if default_vectors is None:
        raise InputError(f"predictor {name!r} needs default vectors: fit them first")
    return ResidualDefaultVectors(layers, default_vectors)
