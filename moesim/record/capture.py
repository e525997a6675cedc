"""Forward hooks that keep what every router saw and chose, layer by layer, in the passes run while they are on.

A hook only keeps references to tensors that the model has computed anyway: it starts no kernel and waits for nothing,
so a pass on a GPU is enqueued as quickly as without. What is kept is put together when it is taken.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from moesim.errors import InputError
from moesim.record.moe_layers import MoeLayer
from moesim.record.router_layout import RouterLayout


@dataclass(frozen=True)
class Choices:
    """What the routers of L layers chose for N tokens, on the model's device.

    The tokens of one pass after another; within a pass over a batch, one sequence after another.

    experts  [L, N, top_k]    the chosen ids, heaviest first; -1 where a token was dropped
    weights  [L, N, top_k]    gate weights as the model used them, in the same order
    scores   [L, N, experts]  the router's score of every expert, float32; None where not asked for
    """

    experts: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None


@dataclass(frozen=True)
class Captured:
    """What the hooks saw. N tokens, L MoE layers.

    The tokens of one pass after another; within a pass over a batch, one sequence after another.

    residual      [L, N, hidden]  residual stream after attention, before the norm that feeds the router
    router_input  [L, N, hidden]  what that norm made of it
    logits        [L, N, experts] the router's logits
    weights       [L, N, top_k]   gate weights as the model used them, heaviest first
    experts       [L, N, top_k]   the chosen ids, in the same order; -1 where a token was dropped
    layout        how the router turns logits into scores
    attention_input [L, N, hidden] what enters the layer's attention, its norm applied; only where asked for
    """

    residual: torch.Tensor
    router_input: torch.Tensor
    logits: torch.Tensor
    weights: torch.Tensor
    experts: torch.Tensor
    layout: RouterLayout
    attention_input: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "Captured":
        """The tokens `rows` (indices into N), in that order."""
        return Captured(
            self.residual[:, rows],
            self.router_input[:, rows],
            self.logits[:, rows],
            self.weights[:, rows],
            self.experts[:, rows],
            self.layout,
            None if self.attention_input is None else self.attention_input[:, rows],
        )

    @property
    def probabilities(self) -> torch.Tensor:
        """[L, N, experts] float32: the scores that the routers compare, softmax of the logits in most models."""
        return self.layout.scores(self.logits)


class _Capture:
    """A context with hooks on all routers; what they saw accumulates until it is taken."""

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._layers = layers
        self._handles: list[Any] = []
        self._seen: dict[str, list[list[torch.Tensor]]] = {}
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is kept: a predictor may ask the model's routers and norms."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def _keep(self, name: str, index: int, tensor: torch.Tensor) -> None:
        if not self._paused:
            self._seen.setdefault(name, [[] for _ in self._layers])[index].append(tensor.detach())

    def _taken(self, name: str) -> torch.Tensor:
        """[L, N, ...]: what was kept under `name`, the tokens of all passes along one axis."""
        layers = [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in self._seen.pop(name)]
        # The layers of one model may be spread over several GPUs.
        return torch.stack([each.to(layers[0].device, non_blocking=True) for each in layers])

    def _taken_choices(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights [L, N, top_k], heaviest first, as the format wants them; not every router sorts."""
        experts, weights = self._taken("experts"), self._taken("weights")
        if weights.shape[-1] == 1:
            return experts, weights
        weights, order = weights.sort(dim=-1, descending=True, stable=True)
        return experts.gather(-1, order), weights


class ChoiceCapture(_Capture):
    """A context in which every router's choice is kept, and with `scores` its score of every expert."""

    def __init__(self, layers: Sequence[MoeLayer], *, scores: bool = False) -> None:
        super().__init__(layers)
        self._scores = scores

    def __enter__(self) -> "ChoiceCapture":
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.router.register_forward_hook(self._hook(index, layer.layout)))
        return self

    def take(self) -> Choices | None:
        """What has come since the context began or this was last called; None if no router has run."""
        if "experts" not in self._seen:
            return None
        experts, weights = self._taken_choices()
        scores = self._layers[0].layout.scores(self._taken("logits")) if self._scores else None
        return Choices(experts, weights, scores)

    def _hook(self, index: int, layout: RouterLayout) -> Any:
        def hook(router: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
            experts, weights = layout.choice(output)
            self._keep("experts", index, experts)
            self._keep("weights", index, weights)
            if self._scores:
                self._keep("logits", index, layout.logits_of(router, args[0], output))

        return hook


class RouterCapture(_Capture):
    """A context in which every forward pass of the model is captured; `take` returns what has come since the last.

    Raises:
        InputError: a layer's block is fed by no norm; `attention_input` is asked for and a layer has no attention
            module of its own.
    """

    def __init__(self, layers: Sequence[MoeLayer], *, attention_input: bool = False) -> None:
        for layer in layers:
            if attention_input and layer.attention is None:
                raise InputError(f"layer {layer.number} has no attention module of its own, so no input to one")
        super().__init__(layers)
        self._attention_input = attention_input

    def __enter__(self) -> "RouterCapture":
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.norm.register_forward_pre_hook(self._norm_hook(index)))
            self._handles.append(layer.router.register_forward_hook(self._router_hook(index, layer.layout)))
            if self._attention_input:
                assert layer.attention is not None, "__init__ saw to it"
                self._handles.append(
                    layer.attention.register_forward_pre_hook(self._attention_hook(index), with_kwargs=True)
                )
        return self

    def take(self) -> Captured:
        """Everything captured since the context began or `take` was last called, along one token axis."""
        experts, weights = self._taken_choices()
        return Captured(
            residual=self._taken("residual"),
            router_input=self._taken("router_input"),
            logits=self._taken("logits"),
            weights=weights,
            experts=experts,
            layout=self._layers[0].layout,
            attention_input=self._taken("attention_input") if self._attention_input else None,
        )

    def _norm_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            self._keep("residual", index, args[0].flatten(0, -2))

        return hook

    def _attention_hook(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
            given = args[0] if args else named["hidden_states"]
            self._keep("attention_input", index, given.flatten(0, -2))

        return hook

    def _router_hook(self, index: int, layout: RouterLayout) -> Any:
        def hook(router: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
            experts, weights = layout.choice(output)
            self._keep("router_input", index, args[0].flatten(0, -2))
            self._keep("logits", index, layout.logits_of(router, args[0], output))
            self._keep("weights", index, weights)
            self._keep("experts", index, experts)

        return hook
