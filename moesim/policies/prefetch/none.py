"""Prefetch nothing."""

from collections.abc import Sequence

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch, Present, nobody


@register("prefetch", "none")
class NoPrefetch(Prefetch):
    """Copies happen on demand only."""

    def asks(self, step: Step, layer: int) -> bool:
        return False

    def wanted(self, step: Step, layer: int, present: Present = nobody) -> Sequence[int]:
        return ()
