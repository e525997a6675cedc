"""A model whose experts are rounded to few bits for a while: what a quantised copy of it would compute."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from moesim.record.moe_layers import MoeLayer


def rounded(weights: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """`weights` after rounding to 2^`bits` even levels between the least and the largest of each group.

    A group is `group` neighbours along the last axis (the last group of a row may be shorter), as in the usual int4
    formats with a scale and an offset per group; scale and offset keep float32.
    """
    length = weights.shape[-1]
    padding = -length % group
    # The padding repeats the last value, so it widens no group.
    padded = torch.cat([weights.float(), weights[..., -1:].float().expand(*weights.shape[:-1], padding)], dim=-1)
    grouped = padded.unflatten(-1, (-1, group))
    least = grouped.amin(-1, keepdim=True)
    scale = ((grouped.amax(-1, keepdim=True) - least) / (2**bits - 1)).clamp(min=torch.finfo(torch.float32).tiny)
    back = ((grouped - least) / scale).round() * scale + least
    result: torch.Tensor = back.flatten(-2)[..., :length].to(weights.dtype)
    return result


class RoundedExperts:
    """The rounded weights of all routed experts, kept beside the true ones; shared experts and all else stay."""

    def __init__(self, layers: Sequence[MoeLayer], bits: int, group: int) -> None:
        self._pairs = [
            (parameter, rounded(parameter.detach(), bits, group))
            for layer in layers
            for name, parameter in layer.experts.named_parameters()
            if parameter.dim() > 1 and not name.endswith("bias")
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model computes with the rounded weights inside this block, and with its own again after it."""
        true = [parameter.data for parameter, _ in self._pairs]
        try:
            for parameter, weights in self._pairs:
                parameter.data = weights
            yield
        finally:
            for (parameter, _), weights in zip(self._pairs, true, strict=True):
                parameter.data = weights
