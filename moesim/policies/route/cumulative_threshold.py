"""Cumulative-threshold (cache-conditional experts, arXiv 2412.00099).

    as `max-rank`, where M is, token by token, the smallest number of ranks whose probabilities sum to at least p

A token that the router is sure of so has little choice, an undecided one has much. The paper tunes p (`mass`).
"""

import numpy as np

from moesim.errors import ConfigError
from moesim.events import Scores
from moesim.policies.registry import register
from moesim.policies.route.max_rank import MaxRank


@register("route", "cumulative-threshold")
class CumulativeThreshold(MaxRank):
    """Residents within the first `mass` of probability stand in for missing experts."""

    def __init__(self, keep: int = 1, mass: float = 0.6) -> None:
        if not 0 <= mass <= 1:
            raise ConfigError(f"policy: cumulative-threshold[mass={mass:g}]: expected a share from 0 to 1")
        super().__init__(keep)
        self._mass = mass

    def worst_rank(self, order: list[int], scores: Scores, count: int) -> int:
        reached = np.cumsum(scores[order])
        return int(np.searchsorted(reached, self._mass * reached[-1])) + 1
