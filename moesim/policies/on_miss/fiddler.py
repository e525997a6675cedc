"""Per missing expert the CPU or the link, whatever is done sooner (Fiddler, arXiv 2402.07033).

    cpu(n)     = the time of an expert with n tokens on the CPU
    fetched(n) = the time of its copy and of its kernel on the GPU
    balance = max: split the missing so that max(sum of cpu, sum of fetched) is smallest: both work at once
    balance = sum: each missing expert goes where it is cheaper by itself

The paper's objective is the maximum; its public code adds both sides up, which is each expert by itself. A copy saves
more the more tokens its expert has, so the experts are sorted by tokens and the heaviest fetched: of all ways to
fetch q of them this is the best where the time of `fetched` hardly depends on tokens, and every q is tried.
"""

from collections.abc import Sequence

from moesim.errors import ConfigError
from moesim.events import Step
from moesim.policies.costs import Costs
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "fiddler")
class Fiddler(OnMiss):
    """Balance the CPU against the link by their costs."""

    uses_cpu = True
    weighs_costs = True

    def __init__(self, balance: str = "max") -> None:
        if balance not in ("max", "sum"):
            raise ConfigError(f"policy: fiddler[balance={balance}]: known: max, sum")
        self._balance = balance

    def prepare(self, costs: Costs | None) -> None:
        assert costs is not None, "a rule that weighs costs is given them"
        self._costs = costs

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        costs, tokens = self._costs, step.tokens_of(layer)
        if self._balance == "sum":
            return [e for e in missing if costs.fetched_ns(tokens.get(e, 1)) < costs.cpu_ns(tokens.get(e, 1))]
        heaviest_first = sorted(missing, key=lambda expert: -tokens.get(expert, 1))
        on_cpu = sum(costs.cpu_ns(tokens.get(expert, 1)) for expert in missing)
        over_link = best = 0
        least = on_cpu
        for count, expert in enumerate(heaviest_first, 1):
            on_cpu -= costs.cpu_ns(tokens.get(expert, 1))
            over_link += costs.fetched_ns(tokens.get(expert, 1))
            if max(on_cpu, over_link) < least:
                least, best = max(on_cpu, over_link), count
        chosen = set(heaviest_first[:best])
        return [expert for expert in missing if expert in chosen]

    def on_cpu(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        fetched = set(self.fetched(step, layer, missing))
        return [expert for expert in missing if expert not in fetched]
