"""Copy the missing expert and wait for it."""

from collections.abc import Sequence

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import OnMiss


@register("on_miss", "fetch")
class Fetch(OnMiss):
    """Every missing expert is copied on demand."""

    def fetched(self, step: Step, layer: int, missing: Sequence[int]) -> Sequence[int]:
        return missing
