"""Prefetch nothing."""

from collections.abc import Iterable, Sequence

from moesim.events import Step
from moesim.policies.registry import register
from moesim.policies.roles import Prefetch


@register("prefetch", "none")
class NoPrefetch(Prefetch):
    """Copies happen on demand only."""

    def predicts(self, step: Step, layer: int) -> bool:
        return False

    def horizon(self, step: Step, layer: int) -> Iterable[int]:
        return ()

    def wanted(self, step: Step, layer: int) -> Sequence[int]:
        return ()
