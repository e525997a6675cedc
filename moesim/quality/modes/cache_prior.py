"""Cache-prior (Mixture of Cache-Conditional Experts, arXiv 2412.00099).

    select the top-k of  z' = z + λ · Δ · m
    m = 1 for experts that are resident or among the true top J, Δ = running mean over tokens of (max z - min z),
    per layer; the weights of the selected come from the original z, by the router's own rule

λ is `strength`, J is `keep`: 1 (Mixtral, Phi) or 2 (Qwen, DeepSeek) in the paper; quality falls past λ of about 0.8.
The mean includes the present token and no prefill; each lane has its own.

What leans is a constant less than z', which no softmax sees: here z' = z - λ · Δ · (1 - m), and the router's own rule
selects from it, so that groups and correction biases hold as they do in the model.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.modes.mode import Event
from moesim.quality.modes.re_routed import ReRouted
from moesim.quality.router_rule import choose
from moesim.record.moe_layers import MoeLayer

_DEFAULTS = {"strength": 0.5, "keep": 1}


class CachePrior(ReRouted):
    """Routing that leans towards what is resident.

    Raises:
        InputError: λ below zero, or what `ReRouted` refuses.
    """

    name = "cache-prior"

    def __init__(
        self, layers: Sequence[MoeLayer], cache_fraction: float, strength: float = 0.5, keep: int = 1
    ) -> None:
        super().__init__(layers, cache_fraction, keep)
        if strength < 0:
            raise InputError(f"{self.name}: strength={strength:g}: λ is at least 0")
        self._strength = strength
        self._range = torch.zeros(0)
        self._tokens = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """The paper's λ and J."""
        return {**super().parameters, "strength": self._strength}

    @property
    def variant(self) -> dict[str, Any]:
        """What is not the policy's default."""
        return {key: self.parameters[key] for key, value in _DEFAULTS.items() if self.parameters[key] != value}

    def begin(self, lanes: int) -> None:
        """Empty pools, no token seen."""
        super().begin(lanes)
        self._range = torch.zeros(len(self._layers), lanes, dtype=torch.float64)
        self._tokens = 0

    def selected(self, event: Event, resident: torch.Tensor) -> torch.Tensor:
        """The top-k of the shifted logits."""
        layer, logits = event.index, event.logits.float()
        self._tokens += layer == 0
        self._range[layer] += (logits.amax(-1) - logits.amin(-1)).double().cpu()
        mean = (self._range[layer] / self._tokens).float().to(logits.device)
        best = event.experts.gather(-1, event.weights.float().topk(self._keep, dim=-1).indices)
        favoured = resident.scatter(-1, best, value=True)
        return choose(self._layers[layer], logits - self._strength * mean[:, None] * ~favoured)[0]
