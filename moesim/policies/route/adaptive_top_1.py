"""Adaptive gating of AdapMoE (arXiv 2408.10284): one expert where that is enough.

    α: the weight of a token's first expert, scaled so that its experts sum to 1; S: the sensitivity of the layer
    execute the first expert alone if (1 - α)²·S is at most the threshold, else all of them

The paper measures S per layer from the loss; a trace does not carry it, so it is 1 in every layer here [open], and the
threshold is a parameter. The paper has top-2 models in mind.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import PREFILL, Step
from moesim.policies.registry import register
from moesim.policies.roles import Present, Route, nobody


@register("route", "adaptive-top-1")
class AdaptiveTop1(Route):
    """Tokens that are sure of their first expert execute no other."""

    lossless = False

    def __init__(self, threshold: float = 0.05) -> None:
        if threshold < 0:
            raise ConfigError(f"policy: adaptive-top-1[threshold={threshold:g}]: expected 0 or more")
        self._threshold = threshold

    def reads_router(self, step: Step, layer: int) -> bool:
        return True

    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        if step.phase == PREFILL:
            self.choices = None
            return step.accesses[layer]
        self.choices = []
        for gates in step.gates(layer):
            rest = 1.0 - gates[0][1] / (sum(weight for _, weight in gates) or 1.0) if gates else 0.0
            self.choices.append([e for e, _ in (gates[:1] if rest * rest <= self._threshold else gates)])
        return list(dict.fromkeys(expert for choice in self.choices for expert in choice))
