"""Forward hooks that copy out what every router saw and chose, layer by layer, in the passes run while they are on."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer


@dataclass(frozen=True)
class Captured:
    """What the hooks saw. N tokens, L MoE layers.

    The tokens of one pass after another; within a pass over a batch, one sequence after another.

    residual      [L, N, hidden]  residual stream after attention, before the norm that feeds the router
    router_input  [L, N, hidden]  what that norm made of it
    logits        [L, N, experts] the router's logits
    weights       [L, N, top_k]   gate weights as the model used them, heaviest first
    experts       [L, N, top_k]   the chosen ids, in the same order
    attention_input [L, N, hidden] what enters the layer's attention, its norm applied; only where asked for
    """

    residual: torch.Tensor
    router_input: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor
    attention_input: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "Captured":
        """The tokens `rows` (indices into N), in that order."""
        return Captured(
            self.residual[:, rows],
            self.router_input[:, rows],
            self.logits[:, rows],
            self.weights[:, rows],
            self.experts[:, rows],
            None if self.attention_input is None else self.attention_input[:, rows],
        )

    @property
    def probabilities(self) -> torch.Tensor:
        """[L, N, experts] float32: softmax of the logits, as the routers compute it."""
        return self.logits.float().softmax(-1)


class RouterCapture:
    """A context in which every forward pass of the model is captured; `take` returns what has come since the last.

    Raises:
        InputError: `attention_input` is asked for and a layer has no attention module of its own.
    """

    def __init__(self, layers: Sequence[MoeLayer], *, attention_input: bool = False) -> None:
        for layer in layers:
            if attention_input and layer.attention is None:
                raise InputError(f"layer {layer.number} has no attention module of its own, so no input to one")
        self._layers = layers
        self._attention_input = attention_input
        self._handles: list[Any] = []
        self._seen: dict[str, list[list[torch.Tensor]]] = {}

    def __enter__(self) -> "RouterCapture":
        self._clear()
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.norm.register_forward_pre_hook(self._norm_hook(index)))
            self._handles.append(layer.router.register_forward_hook(self._router_hook(index)))
            if self._attention_input:
                assert layer.attention is not None, "__init__ saw to it"
                self._handles.append(
                    layer.attention.register_forward_pre_hook(self._attention_hook(index), with_kwargs=True)
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._clear()

    def take(self) -> Captured:
        """Everything captured since the context began or `take` was last called, along one token axis."""
        stacked = {
            name: torch.stack([torch.cat(parts) for parts in per_layer]) for name, per_layer in self._seen.items()
        }
        self._clear()
        return Captured(**stacked)

    def _clear(self) -> None:
        names = ["residual", "router_input", "logits", "weights", "experts"]
        if self._attention_input:
            names.append("attention_input")
        self._seen = {name: [[] for _ in self._layers] for name in names}

    def _norm_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._seen["residual"][index].append(args[0].detach().flatten(0, -2))

        return hook

    def _attention_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
            given = args[0] if args else named["hidden_states"]
            self._seen["attention_input"][index].append(given.detach().flatten(0, -2))

        return hook

    def _router_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
            logits, weights, experts = output
            self._seen["router_input"][index].append(args[0].detach().flatten(0, -2))
            self._seen["logits"][index].append(logits.detach())
            self._seen["weights"][index].append(weights.detach())
            self._seen["experts"][index].append(experts)

        return hook
