"""Max-rank and cumulative-threshold (Mixture of Cache-Conditional Experts, arXiv 2412.00099).

    keep the token's true top J; fill up to top-k with residents of rank M or better, best first;
    where those do not suffice, with the rest in the router's order
    max-rank:              M is `rank`, by default twice the top-k
    cumulative-threshold:  M is, token by token, the fewest ranks whose probabilities sum to at least `mass`

The router's order is that of its scores, its own choice before all others. The paper tunes J, M and the mass.
"""

from collections.abc import Sequence
from typing import Any

import torch

from moesim.errors import InputError
from moesim.quality.modes.mode import Event
from moesim.quality.modes.re_routed import ReRouted
from moesim.record.moe_layers import MoeLayer


class MaxRank(ReRouted):
    """Residents of a good enough rank stand in for missing experts."""

    name = "max-rank"

    def __init__(
        self, layers: Sequence[MoeLayer], cache_fraction: float, rank: int | None = None, keep: int = 1
    ) -> None:
        super().__init__(layers, cache_fraction, keep)
        if rank is not None and rank < 1:
            raise InputError(f"{self.name}: rank={rank}: from 1")
        self._rank = 2 * layers[0].layout.top_k if rank is None else rank
        self._said: dict[str, Any] = {"keep": keep} if keep != 1 else {}
        if rank is not None:
            self._said["rank"] = rank

    @property
    def parameters(self) -> dict[str, Any]:
        """The paper's J and M."""
        return {**super().parameters, "rank": self._rank}

    @property
    def variant(self) -> dict[str, Any]:
        """What was given and is not the policy's default."""
        return self._said

    def selected(self, event: Event, resident: torch.Tensor) -> torch.Tensor:
        """By tier, and by rank inside a tier: the kept, residents that rank well enough, the rest."""
        scores = self._layers[event.index].layout.scores(event.logits)
        chosen = torch.zeros_like(resident).scatter(-1, event.experts, value=True)
        order = (scores + 2.0 * chosen).argsort(dim=-1, descending=True, stable=True)
        rank = order.argsort(-1)
        tier = torch.where(resident & (rank < self.worst_rank(scores.gather(-1, order))), 1, 2)
        tier = torch.where(rank < self._keep, 0, tier)
        return (tier * scores.shape[-1] + rank).topk(event.experts.shape[-1], dim=-1, largest=False).indices

    def worst_rank(self, ordered: torch.Tensor) -> int | torch.Tensor:
        """How many ranks a resident may be chosen from, for scores [N, experts] in the router's order."""
        return self._rank


class CumulativeThreshold(MaxRank):
    """Residents within the first `mass` of probability stand in for missing experts."""

    name = "cumulative-threshold"

    def __init__(self, layers: Sequence[MoeLayer], cache_fraction: float, mass: float = 0.6, keep: int = 1) -> None:
        super().__init__(layers, cache_fraction, keep=keep)
        if not 0 <= mass <= 1:
            raise InputError(f"{self.name}: mass={mass:g}: a share from 0 to 1")
        self._mass = mass

    @property
    def parameters(self) -> dict[str, Any]:
        """The paper's J and its threshold."""
        return {"evict": "lru", "keep": self._keep, "mass": self._mass}

    @property
    def variant(self) -> dict[str, Any]:
        """What is not the policy's default."""
        return self._said if self._mass == 0.6 else {**self._said, "mass": self._mass}

    def worst_rank(self, ordered: torch.Tensor) -> torch.Tensor:
        """The fewest ranks that reach the mass."""
        reached = ordered.cumsum(-1)
        short: torch.Tensor = reached < self._mass * reached[:, -1:]
        return short.sum(-1, keepdim=True) + 1
