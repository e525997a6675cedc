"""What the next layer's own router would choose from what a token knows one layer earlier (arXiv 2603.19289, §3).

Three queries, each given to layer l+1's own router; layer l+1's attention is ignored by all of them:

    router-input              layer l's router input as it is (the paper's baseline)
    residual                  norm_{l+1}(r_l), r_l the residual stream after layer l's attention, before its experts
    residual+default-vectors  norm_{l+1}(r_l + d_l), d_l = sum over the experts chosen at l of weight × default vector
"""

from collections.abc import Sequence

import torch

from moesim.errors import InputError, nearest
from moesim.record.capture import Captured
from moesim.record.moe_layers import MoeLayer

ROUTER_INPUT = "router-input"
RESIDUAL = "residual"
RESIDUAL_DEFAULT_VECTORS = "residual+default-vectors"
PREDICTORS = (ROUTER_INPUT, RESIDUAL, RESIDUAL_DEFAULT_VECTORS)


@torch.inference_mode()
def next_layer_probabilities(
    layers: Sequence[MoeLayer], captured: Captured, predictor: str, default_vectors: torch.Tensor | None = None
) -> torch.Tensor:
    """The predicted router probabilities [L, N, experts], float32, of layers 1 to L-1; layer 0, unforeseen, is zero.

    `default_vectors` is [L, experts, hidden]; only `residual+default-vectors` needs it.

    Raises:
        InputError: an unknown predictor, or one whose default vectors are missing.
    """
    if predictor not in PREDICTORS:
        raise InputError(f"predictor {predictor!r} is unknown: {nearest(predictor, PREDICTORS)}")
    if predictor == RESIDUAL_DEFAULT_VECTORS and default_vectors is None:
        raise InputError(f"predictor {predictor!r} needs default vectors: fit them first")
    predicted = torch.zeros_like(captured.probabilities)
    for index, layer in enumerate(layers[1:]):
        if predictor == ROUTER_INPUT:
            query = captured.router_input[index]
        elif predictor == RESIDUAL:
            query = layer.norm(captured.residual[index])
        else:
            assert default_vectors is not None
            chosen = default_vectors[index][captured.experts[index]]  # [N, top_k, hidden]
            added = (captured.weights[index].float()[..., None] * chosen).sum(1)
            residual = captured.residual[index]
            query = layer.norm((residual.float() + added).to(residual.dtype))
        logits = layer.router(query)[0]
        predicted[index + 1] = logits.float().softmax(-1)
    return predicted
