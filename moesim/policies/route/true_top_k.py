"""Execute what the router chose."""

from collections.abc import Sequence

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Present, Route, nobody


@register("route", "true-top-k")
class TrueTopK(Route):
    """Accesses are the true ids of every layer."""

    def reads_router(self, step: Step, layer: int) -> bool:
        return True

    def accesses(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        return step.accesses[layer]
