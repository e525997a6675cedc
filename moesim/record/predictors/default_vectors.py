"""Default vectors (arXiv 2603.19289): d_{l,e}, the mean output of expert e of layer l over the tokens routed to it.

An expert's own output, before its gate weight, is had from the model's experts module itself: called with one chosen
expert per token and a weight of one. So every implementation that transformers has (eager, grouped) serves unchanged.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer


@torch.inference_mode()
def fit_default_vectors(
    model: nn.Module, layers: Sequence[MoeLayer], batches: Iterable[torch.Tensor], n_experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean expert outputs over `batches` of token ids, each [sequences, tokens].

    Returns the vectors [L, experts, hidden] in float32 and the number of tokens behind each [L, experts]. An expert
    that no token was routed to keeps a vector of zeros, that is, it is foreseen to add nothing.

    Raises:
        InputError: the experts are called with something else than ids and weights (Switch).
    """
    sums: list[torch.Tensor | None] = [None] * len(layers)
    counts = torch.zeros(len(layers), n_experts, dtype=torch.long)

    def hook(index: int) -> Any:
        def accumulate(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            hidden, chosen, weights = args
            if chosen.dim() != 2 or chosen.shape != weights.shape:
                raise InputError(
                    f"{type(module).__name__} is not called with a row of ids and weights for each token: no default "
                    "vectors for such a model"
                )
            total = sums[index]
            if total is None:
                total = torch.zeros(n_experts, hidden.shape[-1], device=hidden.device)
            for slot in range(chosen.shape[-1]):
                ids = chosen[:, slot]
                # `forward`, not the module: the call must not run this hook again.
                output = module.forward(hidden, ids[:, None], torch.ones_like(weights[:, :1]))
                total.index_add_(0, ids, output.float())
            sums[index] = total
            counts[index] += torch.bincount(chosen.flatten(), minlength=n_experts).cpu()

        return accumulate

    handles = [layer.experts.register_forward_pre_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        for batch in batches:
            model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    stacked = torch.stack([total for total in sums if total is not None])
    return stacked / counts.clamp(min=1).to(stacked.device)[..., None], counts
