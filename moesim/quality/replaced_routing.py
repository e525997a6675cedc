"""The hooks through which a mode takes the place of a model's routers. The model's own code runs unchanged.

At every MoE layer the router still runs; what it returns is shown to the mode, and the ids and weights that the mode
answers stand in its output in their place. What the mode adds (default vectors, rounded experts) is added to the output
of the experts module, before any shared expert.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from moesim.quality.modes.mode import Event, Execution, Mode, StandIn
from moesim.record.moe_layers import MoeLayer
from moesim.record.router_layout import RouterLayout


class ReplacedRouting:
    """A context in which `mode` decides for the tokens that `decoding` marks.

    `decoding` is a mask over the rows of the next pass, one sequence after another; None where all are prefill, which
    routes truly under every mode.
    """

    def __init__(self, layers: Sequence[MoeLayer], mode: Mode) -> None:
        self.decoding: torch.Tensor | None = None
        self._layers = layers
        self._mode = mode
        self._handles: list[Any] = []
        self._residual: torch.Tensor | None = None
        self._added: StandIn | None = None
        self._deciding = False

    def __enter__(self) -> "ReplacedRouting":
        for index, layer in enumerate(self._layers):
            if self._mode.reads_residual:
                self._handles.append(layer.norm.register_forward_pre_hook(self._norm_hook()))
            self._handles.append(layer.router.register_forward_hook(self._router_hook(index, layer.layout)))
            self._handles.append(layer.experts.register_forward_hook(self._experts_hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _norm_hook(self) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if not self._deciding:  # a predictor borrows the norms too
                self._residual = args[0].flatten(0, -2)

        return hook

    def _router_hook(self, index: int, layout: RouterLayout) -> Any:
        def hook(router: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> Any:
            if self._deciding or self.decoding is None:
                return None
            experts, weights = layout.choice(output)
            event = Event(
                index, self._residual, args[0].flatten(0, -2), layout.logits_of(router, args[0], output), experts,
                weights,
            )
            self._deciding = True
            try:
                answer = self._mode.execute(event)
            finally:
                self._deciding = False
            self._added = answer.added
            return _replaced(layout, output, self.decoding, answer)

        return hook

    def _experts_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._added is None or self._deciding:
                return None
            added, self._added, decoding = self._added, None, self.decoding
            assert decoding is not None, "only a mode adds, and it decides for decoded tokens alone"
            extra = added(index, args[0]).view_as(output) * decoding.view(*output.shape[:-1], 1)
            return output + extra.to(output.dtype)

        return hook


def _replaced(
    layout: RouterLayout, output: tuple[torch.Tensor, ...], decoding: torch.Tensor, answer: Execution
) -> tuple[torch.Tensor, ...]:
    """The router's output with the answer's ids and weights in the rows that `decoding` marks."""
    true_experts, true_weights = layout.choice(output)
    rows = decoding[:, None]
    experts = torch.where(rows, answer.experts, true_experts)
    weights = torch.where(rows, answer.weights.to(true_weights.dtype), true_weights)
    ids, gates = output[layout.ids], output[layout.weights]
    if layout.one_hot:
        one_hot = nn.functional.one_hot(experts.clamp(min=0), layout.n_experts) * (experts >= 0)[..., None]
        experts = one_hot.view_as(ids)
    replaced = list(output)
    replaced[layout.ids] = experts.view_as(ids).to(ids.dtype)
    replaced[layout.weights] = weights.view_as(gates).to(gates.dtype)
    return tuple(replaced)
