"""Cache-prior (cache-conditional experts, arXiv 2412.00099).

    z:  the router's logits of a token; m = 1 for an expert that is resident or among the token's true top-J, else 0
    Δ:  the running mean of (max z - min z) over the tokens of this layer so far, this one included
    execute the top-k of z + λ·Δ·m, with the weights that z gives them

λ = 0 is the true router; the paper sees quality fall past λ of about 0.8. J is 1 for Mixtral and Phi, 2 for Qwen and
DeepSeek. A trace holds probabilities: z is their logarithm, up to a constant that changes neither the order nor Δ, and
what half precision shows as 0 counts as the smallest number that it can show. The mean is over decoded tokens.
"""

import numpy as np

from moesim.errors import ConfigError
from moesim.events import Scores
from moesim.policies.registry import register
from moesim.policies.route.re_route import ReRoute

SMALLEST = 2.0**-24
"""Of a half-precision number above 0."""


@register("route", "cache-prior")
class CachePrior(ReRoute):
    """A bonus for residents, in units of the logits' usual range."""

    def __init__(self, strength: float = 0.5, keep: int = 1) -> None:
        if strength < 0 or keep < 0:
            raise ConfigError(f"policy: cache-prior[strength={strength:g},keep={keep}]: expected 0 or more")
        self._strength = strength
        self._keep = keep

    def prepare(self, layers: int, experts: int) -> None:
        super().prepare(layers, experts)
        self._range_sum = [0.0] * layers
        self._tokens = [0] * layers

    def choose(
        self, layer: int, order: list[int], scores: Scores, resident: list[bool], count: int
    ) -> list[int]:
        logits = np.log(np.maximum(scores, SMALLEST))
        self._range_sum[layer] += float(logits.max() - logits.min())
        self._tokens[layer] += 1
        bonus = self._strength * self._range_sum[layer] / self._tokens[layer]
        raised = logits.tolist()
        kept = set(order[: self._keep])
        for expert in order:
            if resident[expert] or expert in kept:
                raised[expert] += bonus
        # Sorting is stable: at equal heights the router's order decides.
        chosen = set(sorted(order, key=lambda expert: -raised[expert])[:count])
        return [expert for expert in order if expert in chosen]
