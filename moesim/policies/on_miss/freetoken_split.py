"""Split the missing experts between link and CPU by bandwidth alone (FreeToken).

    of m missing experts, q* = m * B_link / B_host go over the link, at most m; the CPU executes the others

B_host is what the host's memory gives to both together: whichever way an expert goes, its weights are read from there
once, so that all m are through soonest when both end together. q* is rounded to the nearest number of experts, half
down; those with most tokens go over the link, the first used of equals.
"""

from collections.abc import Sequence
from math import ceil

from moesim.events import Step
from moesim.policies.costs import Costs
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "freetoken-split")
class FreeTokenSplit(OnMiss):
    """The share of the link in the host memory's bandwidth goes over the link."""

    uses_cpu = True
    weighs_costs = True

    def prepare(self, costs: Costs | None) -> None:
        assert costs is not None, "a rule that weighs costs is given them"
        self._share = min(1.0, costs.link_bytes_per_s / costs.host_bytes_per_s)

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        tokens = step.tokens_of(layer)
        over_link = ceil(len(missing) * self._share - 0.5)
        chosen = set(sorted(missing, key=lambda expert: -tokens.get(expert, 1))[:over_link])
        return [expert for expert in missing if expert in chosen]

    def on_cpu(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        fetched = set(self.fetched(step, layer, missing))
        return [expert for expert in missing if expert not in fetched]
